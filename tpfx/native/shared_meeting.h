// Where ranks meet that are processes of one host: in memory that they share.
//
// A rank has two rooms there for what it shows the others, each with a stamp. A collective goes in steps: in each, a rank
// writes into one of its rooms, stamps it with the step, waits until all have, and reads theirs. The rooms take turns.
// Who writes into one again has waited for all since. Reductions go over the ranks in rank order, whoever computes them, so that all ranks get the same bits.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "meeting.h"

namespace tpfx {

class SharedMeeting : public Meeting {
 public:
  static constexpr int64_t kMostRanks = 64, kMostDims = 16;

  // `memory`: zeroes that all ranks have mapped, of `bytes(size, room)`. `file`: it as an open file, of which each rank
  // has locked the byte of its seat as long as it lives. `room`: bytes that are shown at once. `timeout`: seconds.
  // `look`: called now and then while waiting; may throw.
  SharedMeeting(void* memory, int file, int64_t seat, int64_t size, int64_t room, double timeout, void (*look)())
      : memory_(static_cast<char*>(memory)), file_(file), seat_(seat), size_(size), room_(room), timeout_(timeout),
        look_(look), rooms_(size), seen_(size),
        spins_(std::thread::hardware_concurrency() >= static_cast<unsigned>(size) ? 2000 : 50) {
    TORCH_CHECK(size <= kMostRanks && room % 64 == 0 && room / 64 >= size, "a meeting of ", size, ", ", room);
  }

  static int64_t bytes(int64_t size, int64_t room) { return kLine * (1 + size) + 2 * size * (sizeof(Signature) + room); }

  int64_t size() const override { return size_; }
  uint64_t generation() const override { return generation_; }

  // What comes now is another run, the next one or that of a later number: who failed in the one before does not hold
  // it up.
  void begin(uint64_t generation = 0) {
    generation_ = generation > 0 ? generation : generation_ + 1;
    step_ = 0;
  }

  // Be ready for the next run, whatever became of those before; no rank may be in one.
  void reset() { board().left.store(0); }

  // This rank comes to nothing more of its run.
  void fail() { place(seat_).failed.store(generation_); }

  // The ranks that have not come to the step that is under way, or have left it for another run.
  std::vector<int64_t> missing() const {
    std::vector<int64_t> found;
    for (int64_t rank = 0; rank < size_; ++rank)
      if (!at_step(rank)) found.push_back(rank);
    return found;
  }

  // The ranks whose processes have ended. One that ends loses its locks, however it ends.
  std::vector<int64_t> ended() const {
    std::vector<int64_t> found;
    for (int64_t rank = 0; rank < size_; ++rank)
      if (!lives(rank)) found.push_back(rank);
    return found;
  }

  // What the ranks have called, as far as this one has seen; their tensors have no data.
  std::vector<Call> calls() const {
    std::vector<Call> made(size_);
    for (int64_t rank = 0; rank < size_; ++rank)
      if (seen_[rank]) made[rank] = seen_[rank]->call(size_);
    return made;
  }

  // The rows of all ranks, in order.
  at::Tensor gather(const at::Tensor& input) {
    begin();
    auto shape = input.sizes().vec();
    shape[0] *= size_;
    Call call;
    call.kind = Kind::all_gather;
    call.input = input;
    call.output = at::empty(shape, input.options());
    const at::Tensor made = call.output;
    meet(seat_, generation_, std::move(call));
    return made;
  }

  void meet(int64_t, uint64_t generation, Call call) override {
    if (generation != generation_ || board().left.load()) throw Left(Left::aborted);
    at::NoGradGuard no_grad;
    try {
      carry_out(call);
    } catch (const Left& left) {
      if (left.why == Left::timed_out || left.why == Left::lost) board().left.store(1);
      throw;
    } catch (...) {  // the others would read what this rank does not write
      board().left.store(1);
      throw;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kLine = 64;  // bytes that processors pass on at once
  static constexpr int kStepBits = 24;

  // Whether a rank has left in the midst of a collective, after which nobody knows what is in the rooms.
  struct Board {
    std::atomic<uint32_t> left;
  };

  // `stamps`: the generation and the step of what is in the rooms. `failed`: a generation.
  struct Place {
    std::atomic<uint64_t> stamps[2], failed;
  };
  static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(Place) <= kLine && sizeof(Board) <= kLine);

  // A call without its tensors, before the data in a room.
  struct alignas(64) Signature {
    Kind kind;
    Reduction reduction;
    at::ScalarType dtype;
    int64_t root, dims, sizes[kMostDims], received[kMostRanks], sent[kMostRanks];

    void write(const Call& call) {
      TORCH_CHECK(call.input.dim() <= kMostDims, "a collective of ", call.input.dim(), " dims, at most ", kMostDims);
      kind = call.kind;
      reduction = call.reduction;
      dtype = call.input.scalar_type();
      root = call.root;
      dims = call.input.dim();
      std::copy(call.input.sizes().begin(), call.input.sizes().end(), sizes);
      std::copy(call.received.begin(), call.received.end(), received);
      std::copy(call.sent.begin(), call.sent.end(), sent);
    }

    bool agrees(const Signature& other) const {
      const int64_t skip = kind == Kind::all_to_all ? 1 : 0;  // its rows are compared apart
      return kind == other.kind && reduction == other.reduction && dtype == other.dtype && root == other.root &&
             dims == other.dims && std::equal(sizes + skip, sizes + dims, other.sizes + skip);
    }

    Call call(int64_t ranks) const {
      Call made;
      made.kind = kind;
      made.reduction = reduction;
      made.root = root;
      made.input = at::empty(at::IntArrayRef(sizes, dims), at::TensorOptions(dtype).device(at::kMeta));
      if (kind == Kind::all_to_all) {
        made.received.assign(received, received + ranks);
        made.sent.assign(sent, sent + ranks);
      }
      return made;
    }
  };

  Board& board() const { return *reinterpret_cast<Board*>(memory_); }
  Place& place(int64_t rank) const { return *reinterpret_cast<Place*>(memory_ + kLine * (1 + rank)); }
  char* room(int64_t rank, int64_t turn) const {
    return memory_ + kLine * (1 + size_) + (2 * rank + turn) * (sizeof(Signature) + room_) + sizeof(Signature);
  }
  static Signature& signature(char* room) { return *reinterpret_cast<Signature*>(room - sizeof(Signature)); }
  uint64_t now() const { return generation_ << kStepBits | step_; }

  // One step: what `write` puts into this rank's room is there for all; theirs are `rooms_` then.
  template <class Write>
  void step(Write&& write) {
    char* mine = room(seat_, turn_);
    write(mine);
    ++step_;
    TORCH_CHECK(step_ < uint64_t(1) << kStepBits, "too many steps of collectives in one graph");
    place(seat_).stamps[turn_].store(now(), std::memory_order_release);
    turn_ ^= 1;
    for (int64_t rank = 0; rank < size_; ++rank) rooms_[rank] = await(rank);
  }

  // The first step of a collective, in which the ranks compare what they call.
  template <class Write>
  void first_step(const Call& call, Write&& write) {
    for (auto& one : seen_) one.reset();
    step([&](char* room) {
      seen_[seat_].emplace().write(call);
      signature(room) = *seen_[seat_];
      write(room);
    });
    for (int64_t rank = 0; rank < size_; ++rank) seen_[rank] = signature(rooms_[rank]);
    if (!all_agree()) throw Left(Left::disagreed);
  }

  bool all_agree() const {
    const Signature& first = *seen_[0];
    if (first.reduction == Reduction::avg && !at::isFloatingType(first.dtype) && !at::isComplexType(first.dtype))
      return false;
    for (const auto& one : seen_)
      if (!first.agrees(*one)) return false;
    if (first.kind != Kind::all_to_all) return true;
    for (int64_t from = 0; from < size_; ++from)
      for (int64_t to = 0; to < size_; ++to)
        if (seen_[to]->received[from] != seen_[from]->sent[to]) return false;
    return true;
  }

  uint64_t newest(int64_t rank) const {
    return std::max(place(rank).stamps[0].load(std::memory_order_acquire),
                    place(rank).stamps[1].load(std::memory_order_acquire));
  }

  char* at_step(int64_t rank) const {
    for (int64_t turn = 0; turn < 2; ++turn)
      if (place(rank).stamps[turn].load(std::memory_order_acquire) == now()) return room(rank, turn);
    return nullptr;
  }

  // Where a rank has what it shows in this step; null until it is there. A rank may be one step ahead.
  char* shown(int64_t rank) const {
    const uint64_t seen = newest(rank);
    if (char* found = at_step(rank)) return found;  // after `newest`: who is ahead leaves both rooms as they are
    if (seen > now()) throw Left(Left::aborted);  // it has left this run for another
    return nullptr;
  }

  char* await(int64_t rank) {
    for (int64_t at = 0; at < spins_ + 2000; ++at) {
      if (char* found = shown(rank)) return found;
      if (at < spins_) {
        pause_briefly();
      } else if (is_gone(rank)) {  // where other processes have the processors, each yield takes long
        break;
      } else {
        std::this_thread::yield();
      }
    }
    return await_long(rank);
  }

  // Sleep between looks, so that this process does not count as working.
  char* await_long(int64_t rank) {
    const auto begun = Clock::now();
    auto pause = std::chrono::microseconds(20);
    auto next = begun + std::chrono::milliseconds(50);
    while (true) {
      const bool gone = is_gone(rank);
      if (char* found = shown(rank)) return found;
      if (gone) throw Left(Left::aborted);
      const auto time = Clock::now();
      if (time > next) {
        if (!lives(rank) && !shown(rank)) throw Left(Left::lost);
        if (std::chrono::duration<double>(time - begun).count() > timeout_) throw Left(Left::timed_out);
        look_();
        next = time + std::chrono::milliseconds(50);
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 3 / 2, std::chrono::microseconds(1000));
    }
  }

  // Whether a rank will show nothing more to this one.
  bool is_gone(int64_t rank) const { return board().left.load() || has_failed(rank) || has_failed(seat_); }
  bool has_failed(int64_t rank) const { return place(rank).failed.load() == generation_; }

  bool lives(int64_t rank) const {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return rank == seat_ || fcntl(file_, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
  }

  void carry_out(Call& call) {
    const at::Tensor out = call.output;
    call.input = call.input.contiguous();
    call.output = out.contiguous();
    switch (call.kind) {
      case Kind::all_reduce: all_reduce(call); break;
      case Kind::all_gather: all_gather(call); break;
      case Kind::reduce_scatter: reduce_scatter(call); break;
      case Kind::all_to_all: all_to_all(call); break;
      case Kind::broadcast: broadcast(call); break;
    }
    if (!call.output.is_same(out)) out.copy_(call.output);
  }

  static char* data(const at::Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()); }

  // `move(begin, count, write)` for each part of `total` that goes at once; `write` is `first_step` or `step`.
  template <class Function>
  void in_parts(const Call& call, int64_t total, int64_t most, Function&& move) {
    int64_t begin = 0;
    do {
      const int64_t count = std::min(most, total - begin);
      move(begin, count, [&](auto&& write) {
        if (begin == 0) {
          first_step(call, write);
        } else {
          step(write);
        }
      });
      begin += most;
    } while (begin < total);
  }

  // In rank order, `count` elements at `offset` of the rooms.
  void reduce_rooms(const Call& call, int64_t offset, int64_t count, char* out) const {
    const auto dtype = call.input.scalar_type();
    const int64_t start = offset * call.input.element_size();
    if (dtype == at::kFloat && call.reduction == Reduction::sum) return add_floats(start, count, out);
    std::vector<at::Tensor> parts;
    for (char* room : rooms_) parts.push_back(at::from_blob(room + start, {count}, dtype));
    reduce(parts, at::from_blob(out, {count}, dtype), call.reduction);
  }

  void add_floats(int64_t start, int64_t count, char* out) const {
    float* total = reinterpret_cast<float*>(out);
    std::memcpy(out, rooms_[0] + start, count * sizeof(float));
    for (int64_t rank = 1; rank < size_; ++rank) {
      const float* part = reinterpret_cast<const float*>(rooms_[rank] + start);
      for (int64_t at = 0; at < count; ++at) total[at] += part[at];
    }
  }

  void all_reduce(const Call& call) {
    const int64_t width = call.output.element_size();
    char* out = data(call.output);
    in_parts(call, call.output.numel(), room_ / width, [&](int64_t begin, int64_t count, auto&& show) {
      char* here = out + begin * width;
      show([&](char* room) { std::memcpy(room, here, count * width); });
      if (size_ <= 2 || count * width <= kSmall) return reduce_rooms(call, 0, count, here);
      const auto from = [&](int64_t rank) { return count * rank / size_; };
      step([&](char* room) {  // each rank adds up a section of what all have shown
        reduce_rooms(call, from(seat_), from(seat_ + 1) - from(seat_), room + from(seat_) * width);
      });
      for (int64_t rank = 0; rank < size_; ++rank)
        std::memcpy(here + from(rank) * width, rooms_[rank] + from(rank) * width, (from(rank + 1) - from(rank)) * width);
    });
  }

  void all_gather(const Call& call) {
    const int64_t total = call.input.nbytes();
    in_parts(call, total, room_, [&](int64_t begin, int64_t count, auto&& show) {
      show([&](char* room) { std::memcpy(room, data(call.input) + begin, count); });
      for (int64_t rank = 0; rank < size_; ++rank)
        std::memcpy(data(call.output) + rank * total + begin, rooms_[rank], count);
    });
  }

  // Bytes of the rooms that one rank has for another, where each has something else for each.
  int64_t share() const { return room_ / size_ / 64 * 64; }

  void reduce_scatter(const Call& call) {
    const int64_t width = call.output.element_size(), rows = call.output.numel();
    in_parts(call, rows, share() / width, [&](int64_t begin, int64_t count, auto&& show) {
      show([&](char* room) {
        for (int64_t rank = 0; rank < size_; ++rank)
          std::memcpy(room + rank * share(), data(call.input) + (rank * rows + begin) * width, count * width);
      });
      reduce_rooms(call, seat_ * share() / width, count, data(call.output) + begin * width);
    });
  }

  void all_to_all(const Call& call) {
    int64_t width = call.input.element_size();  // bytes of a row
    for (auto size : call.input.sizes().slice(1)) width *= size;
    int64_t total = 1;  // bytes, of the most that any rank has for another; known after the first step
    int64_t begin = 0;
    const auto part = [&](int64_t length) { return std::clamp<int64_t>(length * width - begin, 0, share()); };
    const auto write = [&](char* room) {
      int64_t before = 0;
      for (int64_t rank = 0; rank < size_; before += call.sent[rank++])
        std::memcpy(room + rank * share(), data(call.input) + before * width + begin, part(call.sent[rank]));
    };
    for (; begin < total; begin += share()) {
      if (begin == 0) {
        first_step(call, write);
        for (const auto& one : seen_)
          for (int64_t rank = 0; rank < size_; ++rank) total = std::max(total, one->sent[rank] * width);
      } else {
        step(write);
      }
      int64_t before = 0;
      for (int64_t rank = 0; rank < size_; before += call.received[rank++])
        std::memcpy(data(call.output) + before * width + begin, rooms_[rank] + seat_ * share(),
                    part(call.received[rank]));
    }
  }

  void broadcast(const Call& call) {
    in_parts(call, call.output.nbytes(), room_, [&](int64_t begin, int64_t count, auto&& show) {
      show([&](char* room) {
        if (seat_ == call.root) std::memcpy(room, data(call.output) + begin, count);
      });
      if (seat_ != call.root) std::memcpy(data(call.output) + begin, rooms_[call.root], count);
    });
  }

  static constexpr int64_t kSmall = 1 << 15;  // bytes below which a second step takes longer than adding all up

  char* const memory_;
  const int file_;
  const int64_t seat_, size_, room_;
  const double timeout_;
  void (*const look_)();
  std::vector<char*> rooms_;                     // of the ranks, in the newest step
  std::vector<std::optional<Signature>> seen_;   // of the newest collective
  const int64_t spins_;
  uint64_t generation_ = 0, step_ = 0;
  int64_t turn_ = 0;
};

}  // namespace tpfx
