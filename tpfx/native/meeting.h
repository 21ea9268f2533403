// Where ranks meet for a collective, without Python's lock; here those that are threads of one process.
//
// Every rank brings a Call. The last one to come compares the calls and does the work; where the tensors are large,
// each rank does its share. A rank that waits spins for some microseconds, then yields, then sleeps. Reductions go over
// the ranks in rank order, whoever computes them, so that all ranks get the same bits.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tpfx {

enum class Kind { all_reduce, all_gather, reduce_scatter, all_to_all, broadcast };
enum class Reduction { none, sum, avg, product, min, max };

// What one rank brings to a collective. Of all_reduce and broadcast, `output` is `input`.
struct Call {
  Kind kind = Kind::all_reduce;
  Reduction reduction = Reduction::none;
  int64_t root = 0;
  at::Tensor input, output;
  std::vector<int64_t> received, sent;  // rows of an all_to_all, from and to each rank
};

// Why a rank leaves a collective without its result. Python makes an error of tpfx of it.
struct Left : std::exception {
  enum Why { aborted, timed_out, disagreed, lost } why;
  explicit Left(Why why) : why(why) {}
  const char* what() const noexcept override { return "left a collective"; }
};

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What a thread does now and then that sleeps in a collective, if anything; it may throw.
inline thread_local void (*between_waits)() = nullptr;

class Meeting {
 public:
  virtual ~Meeting() = default;
  virtual int64_t size() const = 0;
  // Ranks that meet have the same.
  virtual uint64_t generation() const = 0;
  // Carry out one collective; returns when the tensors of `seat` are ready.
  virtual void meet(int64_t seat, uint64_t generation, Call call) = 0;
};

inline void combine(at::Tensor& total, const at::Tensor& part, Reduction how) {
  switch (how) {
    case Reduction::product: total.mul_(part); return;
    case Reduction::max: at::maximum_out(total, total, part); return;
    case Reduction::min: at::minimum_out(total, total, part); return;
    default: total.add_(part);
  }
}

// In rank order into `out`, which may be the first part; narrow floats are added up in float32.
inline void reduce(const std::vector<at::Tensor>& parts, const at::Tensor& out, Reduction how) {
  const bool narrow = out.scalar_type() == at::kBFloat16 || out.scalar_type() == at::kHalf;
  const bool wide = narrow && how != Reduction::max && how != Reduction::min;
  at::Tensor total = wide ? parts[0].to(at::kFloat) : out;
  if (!wide && !out.is_same(parts[0])) out.copy_(parts[0]);
  for (size_t rank = 1; rank < parts.size(); ++rank) combine(total, parts[rank], how);
  if (how == Reduction::avg) total.div_(static_cast<int64_t>(parts.size()));
  if (!total.is_same(out)) out.copy_(total);
}

class ThreadMeeting : public Meeting {
 public:
  // `big`: bytes from which each rank does its share of the work. `timeout`: seconds.
  ThreadMeeting(int64_t size, double timeout, int64_t big)
      : size_(size), timeout_(timeout), big_(big), calls_(size), present_(size),
        spins_(std::thread::hardware_concurrency() >= static_cast<unsigned>(size) ? 2000 : 50) {}

  int64_t size() const override { return size_; }
  uint64_t generation() const override { return generation_.load(); }

  // Release every rank that waits, and every one that comes before `reset`.
  void abort() {
    aborted_.store(true);
    wake();
  }

  // Forget an aborted collective. Ranks of runs before this one do not meet those of later runs.
  void reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    generation_.fetch_add(1);
    arrived_.store(0);
    for (auto& one : present_) one.store(false);
    for (auto& call : calls_) call = Call();
    aborted_.store(false);
  }

  // The ranks that have not come to the collective that is under way.
  std::vector<int64_t> missing() const {
    std::vector<int64_t> found;
    for (int64_t seat = 0; seat < size_; ++seat)
      if (!present_[seat].load()) found.push_back(seat);
    return found;
  }

  const std::vector<Call>& calls() const { return calls_; }

  void meet(int64_t seat, uint64_t generation, Call call) override {
    require_running(generation);
    calls_[seat] = std::move(call);
    present_[seat].store(true);
    const uint64_t round = round_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      open(round);
    } else {
      wait(round, generation, /*all_have_come=*/false);
    }
    if (disagree_) throw Left(Left::disagreed);
    if (shared_) {
      carry_out_guarded(seat, seat + 1);
      const uint64_t second = round + 1;
      if (finished_.fetch_add(1) + 1 == size_) {
        finished_.store(0);
        advance(second);
      } else {
        wait(second, generation, /*all_have_come=*/true);
      }
    }
    calls_[seat] = Call();  // nobody reads it any more, and it holds memory
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct Counted {
    explicit Counted(std::atomic<int64_t>& count) : count(count) { count.fetch_add(1); }
    ~Counted() { count.fetch_sub(1); }
    std::atomic<int64_t>& count;
  };

  void require_running(uint64_t generation) const {
    if (aborted_.load() || generation_.load() != generation) throw Left(Left::aborted);
  }

  // The last rank to come: everybody's calls are here.
  void open(uint64_t round) {
    arrived_.store(0);
    for (auto& one : present_) one.store(false);
    disagree_ = !all_agree();
    shared_ = !disagree_ && size_ > 1 && is_big();
    if (!disagree_ && !shared_) carry_out_guarded(0, size_);
    advance(round);
  }

  void advance(uint64_t round) {
    round_.store(round + 1);
    if (sleepers_.load() > 0) wake();
  }

  void wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }

  void wait(uint64_t round, uint64_t generation, bool all_have_come) {
    for (int64_t at = 0; at < spins_; ++at) {
      if (round_.load(std::memory_order_acquire) != round) return;
      pause_briefly();
    }
    for (int64_t at = 0; at < 2000; ++at) {
      if (round_.load() != round) return;
      require_running(generation);
      std::this_thread::yield();
    }
    sleep(round, generation, all_have_come);
  }

  void sleep(uint64_t round, uint64_t generation, bool all_have_come) {
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_));
    std::unique_lock<std::mutex> lock(mutex_);
    const Counted counted(sleepers_);
    const auto over = [&] { return round_.load() != round || aborted_.load() || generation_.load() != generation; };
    const auto at_work = [&] { return all_have_come || arrived_.load() == 0; };  // it may take its time
    while (!over() && (Clock::now() < end || at_work())) {
      changed_.wait_for(lock, std::chrono::milliseconds(50), over);
      if (between_waits == nullptr || over()) continue;
      lock.unlock();
      between_waits();
      lock.lock();
    }
    if (round_.load() != round) return;
    if (aborted_.load() || generation_.load() != generation) throw Left(Left::aborted);
    aborted_.store(true);
    changed_.notify_all();
    throw Left(Left::timed_out);
  }

  bool all_agree() const {
    const Call& first = calls_[0];
    if (first.reduction == Reduction::avg && !first.input.is_floating_point() && !first.input.is_complex()) return false;
    for (const Call& call : calls_)
      if (!agree(first, call)) return false;
    if (first.kind != Kind::all_to_all) return true;
    for (int64_t from = 0; from < size_; ++from)
      for (int64_t to = 0; to < size_; ++to)
        if (calls_[to].received[from] != calls_[from].sent[to]) return false;
    return true;
  }

  static bool agree(const Call& one, const Call& two) {
    if (one.kind != two.kind || one.reduction != two.reduction || one.root != two.root) return false;
    if (one.input.scalar_type() != two.input.scalar_type()) return false;
    const auto skip = one.kind == Kind::all_to_all ? 1 : 0;  // its rows are compared apart
    return one.input.dim() == two.input.dim() && one.input.sizes().slice(skip).equals(two.input.sizes().slice(skip));
  }

  bool is_big() const {
    for (const Call& call : calls_)
      if (!call.input.is_contiguous() || !call.output.is_contiguous()) return false;
    return static_cast<int64_t>(calls_[0].input.nbytes()) >= big_;
  }

  // The others wait for this work: where it fails, they are released.
  void carry_out_guarded(int64_t begin, int64_t end) {
    try {
      carry_out(begin, end);
    } catch (...) {
      abort();
      throw;
    }
  }

  // The part of the work that belongs to the ranks from `begin` to `end`; all parts together are the whole.
  void carry_out(int64_t begin, int64_t end) {
    at::NoGradGuard no_grad;  // writes in place must not be recorded
    const bool whole = end - begin == size_;
    switch (calls_[0].kind) {
      case Kind::all_reduce: return all_reduce(begin, whole);
      case Kind::all_gather: return each(begin, end, [&](int64_t target) { all_gather(target); });
      case Kind::reduce_scatter: return each(begin, end, [&](int64_t target) { reduce_scatter(target); });
      case Kind::all_to_all: return each(begin, end, [&](int64_t target) { all_to_all(target); });
      case Kind::broadcast: return each(begin, end, [&](int64_t target) { broadcast(target); });
    }
  }

  template <class Function>
  static void each(int64_t begin, int64_t end, Function&& function) {
    for (int64_t target = begin; target < end; ++target) function(target);
  }

  void all_reduce(int64_t seat, bool whole) {
    std::vector<at::Tensor> parts;
    for (const Call& call : calls_) parts.push_back(whole ? call.input : section(call.input, seat));
    if (add_floats(parts)) return;
    reduce(parts, parts[0], calls_[0].reduction);
    for (int64_t rank = 1; rank < size_; ++rank) parts[rank].copy_(parts[0]);
  }

  at::Tensor section(const at::Tensor& tensor, int64_t index) const {
    const auto count = tensor.numel();
    return tensor.view(-1).slice(0, count * index / size_, count * (index + 1) / size_);
  }

  // What add_ and copy_ would do, without their way through the dispatcher.
  bool add_floats(const std::vector<at::Tensor>& parts) const {
    if (calls_[0].reduction != Reduction::sum) return false;
    for (const auto& part : parts)
      if (part.scalar_type() != at::kFloat || !part.is_cpu() || !part.is_contiguous()) return false;
    const auto count = parts[0].numel();
    float* total = parts[0].data_ptr<float>();
    for (int64_t rank = 1; rank < size_; ++rank) {
      const float* part = parts[rank].data_ptr<float>();
      for (int64_t at = 0; at < count; ++at) total[at] += part[at];
    }
    for (int64_t rank = 1; rank < size_; ++rank)
      std::memcpy(parts[rank].data_ptr<float>(), total, count * sizeof(float));
    return true;
  }

  void all_gather(int64_t target) {
    const auto rows = calls_[target].output.size(0) / size_;
    for (int64_t rank = 0; rank < size_; ++rank)
      calls_[target].output.narrow(0, rank * rows, rows).copy_(calls_[rank].input);
  }

  void reduce_scatter(int64_t target) {
    const auto& out = calls_[target].output;
    const auto rows = out.size(0);
    std::vector<at::Tensor> parts;
    for (const Call& call : calls_) parts.push_back(call.input.narrow(0, target * rows, rows));
    reduce(parts, out, calls_[0].reduction);
  }

  void all_to_all(int64_t target) {
    int64_t offset = 0;
    for (int64_t rank = 0; rank < size_; ++rank) {
      const auto& sent = calls_[rank].sent;
      int64_t start = 0;
      for (int64_t before = 0; before < target; ++before) start += sent[before];
      calls_[target].output.narrow(0, offset, sent[target]).copy_(calls_[rank].input.narrow(0, start, sent[target]));
      offset += sent[target];
    }
  }

  void broadcast(int64_t target) {
    const auto root = calls_[0].root;
    if (target != root) calls_[target].output.copy_(calls_[root].input);
  }

  const int64_t size_;
  const double timeout_;
  const int64_t big_;
  std::vector<Call> calls_;
  std::vector<std::atomic<bool>> present_;
  const int64_t spins_;
  bool disagree_ = false, shared_ = false;  // of the newest round; written by its last rank alone
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> finished_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> aborted_{false};
  std::atomic<int64_t> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace tpfx
