// What one process hands to another that has the same arena mapped: of tensors where they lie, of the rest the bytes.
//
//   the caller                                         a rank's process
//   Sent sent(arena, rows, shared, dumps)
//                           -- offset, length -->      Desk desk(arena)
//                                                      args = desk.unpack(offset, length, loads)
//                                                      desk.pack(results, lent, dumps)
//                           <-- offset, length --
//   sent.unpack(rank, offset, length, leases, loads)
//
// Arguments that do not lie in the arena are moved there with their memory, so that whoever has them sees what is
// written; those that the ranks have in common are copied. A result is a lease: the process that made it keeps its
// memory until the caller has let go of it, which it is told with a later message.
#pragma once

#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <unordered_map>

#include "arena.h"

namespace tpfx {

class Writer {
 public:
  std::string bytes;

  template <class T>
  void put(const T& value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }

  void put(at::IntArrayRef values) {
    for (int64_t value : values) put<int64_t>(value);
  }
};

// Bytes that others read in an arena, until it is let go.
class Block {
 public:
  Block(std::shared_ptr<Arena> arena, const std::string& text)
      : arena_(std::move(arena)), length_(text.size()), memory_(arena_->allocate(length_)) {
    if (length_ > 0) std::memcpy(memory_.get(), text.data(), length_);
  }

  // Offset and length.
  std::pair<int64_t, int64_t> place() const { return {memory_ ? arena_->offset(memory_.get()) : 0, length_}; }

 private:
  std::shared_ptr<Arena> arena_;
  int64_t length_;
  at::DataPtr memory_;
};

class Reader {
 public:
  Reader(const char* from, int64_t length) : at_(from), end_(from + length) {}

  bool done() const { return at_ == end_; }

  template <class T>
  T get() {
    T value;
    std::memcpy(&value, skip(sizeof(T)), sizeof(T));
    return value;
  }

  std::vector<int64_t> ints(int64_t count) {
    std::vector<int64_t> found(count);
    std::memcpy(found.data(), skip(count * sizeof(int64_t)), count * sizeof(int64_t));
    return found;
  }

  const char* skip(int64_t length) {
    TORCH_CHECK(length <= end_ - at_, "a message ends too soon");
    const char* found = at_;
    at_ += length;
    return found;
  }

 private:
  const char *at_, *end_;
};

// Of a value: pickled, a tensor without elements, or one whose memory lies at an offset of the arena, is an
// argument's, is another result's, or is lent.
enum class Form : int8_t { pickled, empty, placed, of_argument, of_result, lent };

// How a tensor lies on its memory.
struct View {
  at::ScalarType dtype;
  bool conj, neg;
  int64_t offset;
  std::vector<int64_t> sizes, strides;

  static void write(Writer& to, const at::Tensor& one, int64_t offset) {
    to.put(one.scalar_type());
    to.put(one.is_conj());
    to.put(one.is_neg());
    to.put(offset);
    to.put(one.dim());
    to.put(one.sizes());
    to.put(one.strides());
  }

  static View read(Reader& from) {
    View made{from.get<at::ScalarType>(), from.get<bool>(), from.get<bool>(), from.get<int64_t>(), {}, {}};
    const auto dims = from.get<int64_t>();
    made.sizes = from.ints(dims);
    made.strides = from.ints(dims);
    return made;
  }

  at::Tensor on(c10::Storage memory) const {
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        std::move(memory), c10::DispatchKeySet(c10::DispatchKey::CPU), c10::scalarTypeToTypeMeta(dtype));
    made.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
    if (conj) made._set_conj(true);
    if (neg) made._set_neg(true);
    return made;
  }

  at::Tensor of_nothing() const { return at::empty_strided(sizes, strides, at::TensorOptions(dtype)); }
};

// Whether a tensor is nothing but dense memory on the CPU.
inline bool is_plain(const at::Tensor& one) {
  return one.device().is_cpu() && one.layout() == at::kStrided && one.has_storage() && !one.is_quantized() &&
         !one.key_set().has(c10::DispatchKey::Python);
}

inline void write_pickled(Writer& to, const py::handle& value, const py::function& dumps) {
  const auto text = dumps(value).cast<std::string>();
  to.put(Form::pickled);
  to.put(static_cast<int64_t>(text.size()));
  to.bytes += text;
}

inline py::object read_pickled(Reader& from, const py::function& loads) {
  const auto length = from.get<int64_t>();
  return loads(py::bytes(from.skip(length), length));
}

inline void write_empty(Writer& to, const at::Tensor& one) {
  to.put(Form::empty);
  View::write(to, one, 0);
}

inline at::Storage memory_at(void* address, int64_t bytes) {
  return at::Storage(at::Storage::use_byte_size_t(), bytes, at::DataPtr(address, at::kCPU), nullptr, false);
}

// Which storages, by number, a process may take back, as the other has let go of them.
class Leases {
 public:
  void end(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_.push_back(number);
  }

  std::vector<int64_t> take_ended() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(ended_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<int64_t> ended_;
};

struct Lease {
  std::shared_ptr<Arena> arena;  // stays mapped
  std::shared_ptr<Leases> leases;
  int64_t number;

  static void end(void* context) {
    std::unique_ptr<Lease> lease(static_cast<Lease*>(context));
    lease->leases->end(lease->number);
  }
};

// The arguments of one run, as the other processes find them; it holds what they read until it is let go.
class Sent {
 public:
  // `rows`: of each other rank. `shared`: the row of this process's own rank; what is the same object there, others
  // may not write into, nor move.
  Sent(std::shared_ptr<Arena> arena, std::vector<py::tuple> rows, const py::tuple& shared, const py::function& dumps)
      : arena_(std::move(arena)), rows_(std::move(rows)) {
    for (const py::tuple& row : rows_) {
      Writer to;
      for (size_t at = 0; at < row.size(); ++at) {
        Writer one;
        write(one, row[at], row[at].is(shared[at]), dumps);
        to.put(static_cast<int64_t>(one.bytes.size()));
        to.bytes += one.bytes;
      }
      messages_.emplace_back(arena_, to.bytes);
    }
  }

  // Offset and length of each rank's.
  std::vector<std::pair<int64_t, int64_t>> places() const {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (const Block& message : messages_) found.push_back(message.place());
    return found;
  }

  // The results of a rank, by what it has answered.
  py::list unpack(size_t which, int64_t offset, int64_t length, const std::shared_ptr<Leases>& leases,
                  const py::function& loads) const {
    Reader from(arena_->at(offset), length);
    py::list made;
    std::vector<at::Storage> memories;  // of the results
    while (!from.done()) {
      const auto form = from.get<Form>();
      if (form == Form::pickled) {
        made.append(read_pickled(from, loads));
        memories.emplace_back();
        continue;
      }
      at::Storage memory;
      if (form == Form::of_argument) memory = argument(rows_[which][from.get<int64_t>()]).storage();
      if (form == Form::of_result) memory = memories[from.get<int64_t>()];
      if (form == Form::lent) memory = leased(from, leases);
      const View view = View::read(from);
      made.append(form == Form::empty ? view.of_nothing() : view.on(memory));
      memories.push_back(std::move(memory));
    }
    return made;
  }

 private:
  void write(Writer& to, const py::handle& value, bool is_shared, const py::function& dumps) {
    if (!THPVariable_Check(value.ptr())) return write_pickled(to, value, dumps);
    at::Tensor one = THPVariable_Unpack(value.ptr());
    if (!is_plain(one)) return write_pickled(to, value, dumps);
    if (one.numel() == 0) return write_empty(to, one);
    if (!arena_->has(one.storage().data())) one = is_shared ? copied(one) : moved(one);
    to.put(Form::placed);
    to.put(arena_->offset(one.storage().data()));
    to.put(static_cast<int64_t>(one.storage().nbytes()));
    View::write(to, one, one.storage_offset());
  }

  at::Tensor copied(const at::Tensor& one) {
    at::Tensor& copy = copies_[one.unsafeGetTensorImpl()];
    if (copy.defined()) return copy;
    int64_t reach = 1;
    for (int64_t dim = 0; dim < one.dim(); ++dim) reach += (one.size(dim) - 1) * one.stride(dim);
    const int64_t bytes = reach * one.element_size();
    at::DataPtr memory = arena_->allocate(bytes);
    std::memcpy(memory.get(), one.const_data_ptr(), bytes);
    at::Storage storage(at::Storage::use_byte_size_t(), bytes, std::move(memory), nullptr, false);
    copy = View{one.scalar_type(), one.is_conj(), one.is_neg(), 0, one.sizes().vec(), one.strides().vec()}.on(storage);
    return copy;
  }

  // With all that lies on the same memory.
  at::Tensor moved(const at::Tensor& one) {
    c10::StorageImpl* memory = one.storage().unsafeGetStorageImpl();
    at::DataPtr made = arena_->allocate(static_cast<int64_t>(memory->nbytes()));
    std::memcpy(made.get(), memory->data(), memory->nbytes());
    memory->set_data_ptr(std::move(made));
    return one;
  }

  at::Tensor argument(const py::handle& value) const {
    const at::Tensor& one = THPVariable_Unpack(value.ptr());
    const auto found = copies_.find(one.unsafeGetTensorImpl());
    return found == copies_.end() ? one : found->second;
  }

  at::Storage leased(Reader& from, const std::shared_ptr<Leases>& leases) const {
    const auto number = from.get<int64_t>(), offset = from.get<int64_t>(), bytes = from.get<int64_t>();
    at::DataPtr memory(arena_->at(offset), new Lease{arena_, leases, number}, &Lease::end, at::kCPU);
    return at::Storage(at::Storage::use_byte_size_t(), bytes, std::move(memory), c10::GetCPUAllocator(), true);
  }

  const std::shared_ptr<Arena> arena_;
  const std::vector<py::tuple> rows_;
  std::vector<Block> messages_;
  std::unordered_map<const c10::TensorImpl*, at::Tensor> copies_;
};

// What a rank's process has lent to the caller, until that has let go of it.
class Lent {
 public:
  int64_t add(at::Storage memory) {
    storages_.emplace(++newest_, std::move(memory));
    return newest_;
  }

  void take_back(const std::vector<int64_t>& numbers) {
    for (int64_t number : numbers) storages_.erase(number);
  }

  size_t count() const { return storages_.size(); }

  std::unique_ptr<Block> answer;  // the newest, until the next one

 private:
  std::unordered_map<int64_t, at::Storage> storages_;
  int64_t newest_ = 0;
};

// Where a rank's process finds the arguments of one program, and leaves its results.
class Desk {
 public:
  explicit Desk(std::shared_ptr<Arena> arena) : arena_(std::move(arena)) {}

  // What is written as it was in the run before is the same object: weights, mostly.
  py::tuple unpack(int64_t offset, int64_t length, const py::function& loads) {
    Reader from(arena_->at(offset), length);
    size_t count = 0;
    for (; !from.done(); ++count) {
      const auto size = from.get<int64_t>();
      const std::string_view text(from.skip(size), size);
      if (count == known_.size()) known_.emplace_back();
      if (known_[count].text == text && known_[count].form != Form::pickled) continue;
      Reader one(text.data(), size);
      known_[count] = Known{std::string(text), read(one, loads), static_cast<Form>(text[0])};
    }
    py::tuple made(count);
    for (size_t at = 0; at < count; ++at) made[at] = known_[at].value;
    return made;
  }

  // Offset and length of the answer.
  std::pair<int64_t, int64_t> pack(const py::sequence& results, Lent& lent, const py::function& dumps) const {
    std::unordered_map<const c10::StorageImpl*, std::pair<Form, int64_t>> known;
    for (size_t at = 0; at < known_.size(); ++at)
      if (known_[at].form == Form::placed)
        known.emplace(memory_of(THPVariable_Unpack(known_[at].value.ptr())), std::pair(Form::of_argument, at));
    Writer to;
    int64_t number = 0;
    for (auto value : results) {
      const bool plain = THPVariable_Check(value.ptr()) && is_plain(THPVariable_Unpack(value.ptr()));
      if (!plain) write_pickled(to, value, dumps);
      else if (THPVariable_Unpack(value.ptr()).numel() == 0) write_empty(to, THPVariable_Unpack(value.ptr()));
      else write(to, THPVariable_Unpack(value.ptr()), number, known, lent);
      ++number;
    }
    lent.answer = std::make_unique<Block>(arena_, to.bytes);
    return lent.answer->place();
  }

 private:
  struct Known {
    std::string text;
    py::object value;
    Form form;
  };

  py::object read(Reader& from, const py::function& loads) const {
    const auto form = from.get<Form>();
    if (form == Form::pickled) return read_pickled(from, loads);
    if (form == Form::empty) return py::cast(View::read(from).of_nothing());
    const auto offset = from.get<int64_t>(), bytes = from.get<int64_t>();
    return py::cast(View::read(from).on(memory_at(arena_->at(offset), bytes)));
  }

  static const c10::StorageImpl* memory_of(const at::Tensor& one) { return one.storage().unsafeGetStorageImpl(); }

  at::Tensor copied(const at::Tensor& one) const {
    const auto dense = one.resolve_conj().resolve_neg().contiguous();
    const auto bytes = static_cast<int64_t>(dense.nbytes());
    at::Storage memory(at::Storage::use_byte_size_t(), bytes, arena_->allocate(bytes), nullptr, false);
    std::memcpy(memory.mutable_data(), dense.const_data_ptr(), bytes);
    return View{one.scalar_type(), false, false, 0, dense.sizes().vec(), dense.strides().vec()}.on(memory);
  }

  template <class Map>
  void write(Writer& to, at::Tensor one, int64_t number, Map& known, Lent& lent) const {
    const auto found = known.find(memory_of(one));
    if (found != known.end()) {
      to.put(found->second.first);
      to.put(found->second.second);
      return View::write(to, one, one.storage_offset());
    }
    if (!arena_->has(one.storage().data()) || c10::impl::cow::is_cow_data_ptr(one.storage().data_ptr()))
      one = copied(one);
    known.emplace(memory_of(one), std::pair(Form::of_result, number));
    to.put(Form::lent);
    to.put(lent.add(one.storage()));
    to.put(arena_->offset(one.storage().data()));
    to.put(static_cast<int64_t>(one.storage().nbytes()));
    View::write(to, one, one.storage_offset());
  }

  const std::shared_ptr<Arena> arena_;
  std::vector<Known> known_;
};

}  // namespace tpfx
