// Tensors that grow along one dimension, as caches of keys and values do, in memory with room behind them.
//
//   longer = grown(past, fresh, dim)      // cat(past, fresh), without a copy of `past` where there is room
//
// The longer tensor lies on the memory of the past one, which stays as it is: both share it by torch's copy on write,
// so whoever writes into one of them gets a copy first. Two tensors that go on from one past part likewise: what lies
// behind its end is written once. A past that was not made here is copied without room, since most are continued once
// alone, as when a search reorders its beams.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COW.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>

namespace tpfx {

// How a tensor lies in such memory: so many blocks, one for each element of the dimensions before the one that grows.
struct Growth {
  int64_t dim, inner;  // bytes of one row: of one element of that dimension, and of all dimensions after it
  Growth(const at::Tensor& past, int64_t given) : dim(given < 0 ? given + past.dim() : given) {
    inner = past.element_size();
    for (int64_t at = dim + 1; at < past.dim(); ++at) inner *= past.size(at);
  }

  int64_t bytes(const at::Tensor& one) const { return one.size(dim) * inner; }

  int64_t blocks(const at::Tensor& one) const {
    int64_t count = 1;
    for (int64_t at = 0; at < dim; ++at) count *= one.size(at);
    return count;
  }

  // Of a tensor of these sizes in blocks of so many bytes.
  std::vector<int64_t> strides(at::IntArrayRef sizes, int64_t block, int64_t item) const {
    std::vector<int64_t> made(sizes.size());
    int64_t step = 1;
    for (int64_t at = static_cast<int64_t>(sizes.size()) - 1; at >= 0; --at) {
      made[at] = step;
      step = at == dim ? block / item : step * sizes[at];
    }
    return made;
  }

  bool lies_in_blocks(const at::Tensor& one, int64_t block) const {
    const auto wanted = strides(one.sizes(), block, one.element_size());
    for (int64_t at = 0; at < one.dim(); ++at)
      if (one.size(at) != 1 && one.stride(at) != wanted[at]) return false;
    return true;
  }
};

// The memory of all tensors that were made here, by address.
class Rooms {
 public:
  static Rooms& all() {
    static Rooms& rooms = *new Rooms;  // outlives whatever is freed at the end of the process
    return rooms;
  }

  c10::intrusive_ptr<c10::StorageImpl> make(int64_t blocks, int64_t block, int64_t used) {
    auto* allocator = c10::GetCPUAllocator();
    at::DataPtr memory = allocator->allocate(blocks * block);
    void* data = memory.get();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      rooms_.insert_or_assign(data, Room{std::move(memory), block, used});
    }
    return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), blocks * block,
                                                 at::DataPtr(data, data, &forget, at::kCPU), allocator, true);
  }

  size_t count() {
    std::lock_guard<std::mutex> lock(mutex_);
    return rooms_.size();
  }

  bool has(const void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    return rooms_.count(data) > 0;
  }

  // Take what lies behind a tensor's end for so many bytes more a block: its block's bytes, or nothing where it is
  // taken, or too little.
  std::optional<int64_t> extend(const at::Tensor& past, const Growth& growth, int64_t more) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = rooms_.find(past.storage().data());
    if (found == rooms_.end()) return {};
    Room& room = found->second;
    const int64_t end = past.storage_offset() * past.element_size() + growth.bytes(past);
    if (end != room.used || end + more > room.block || !growth.lies_in_blocks(past, room.block)) return {};
    room.used += more;
    return room.block;
  }

 private:
  struct Room {
    at::DataPtr memory;
    int64_t block, used;  // bytes
  };

  static void forget(void* data) {
    std::unordered_map<const void*, Room>::node_type gone;  // is freed without the lock
    std::lock_guard<std::mutex> lock(all().mutex_);
    gone = all().rooms_.extract(data);
  }

  std::mutex mutex_;
  std::unordered_map<const void*, Room> rooms_;
};

inline bool can_grow(const at::Tensor& past, const at::Tensor& fresh, int64_t dim) {
  const auto plain = [](const at::Tensor& one) {
    return one.device().is_cpu() && one.layout() == at::kStrided && one.numel() > 0 && one.has_storage() &&
           !one.key_set().has(c10::DispatchKey::Python) && !one.is_conj() && !one.is_neg() &&
           !(one.requires_grad() && at::GradMode::is_enabled());
  };
  if (!plain(past) || !plain(fresh) || past.dim() != fresh.dim() || past.scalar_type() != fresh.scalar_type())
    return false;
  if (dim < -past.dim() || dim >= past.dim()) return false;
  for (int64_t at = 0; at < past.dim(); ++at)
    if (at != (dim < 0 ? dim + past.dim() : dim) && past.size(at) != fresh.size(at)) return false;
  return true;
}

inline at::Tensor on_memory(c10::intrusive_ptr<c10::StorageImpl> memory, const at::Tensor& like,
                            at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(memory)), c10::DispatchKeySet(c10::DispatchKey::CPU), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return made;
}

// In the room behind the past, if there is enough.
inline std::optional<at::Tensor> continued(const at::Tensor& past, const at::Tensor& fresh, const Growth& growth,
                                           at::IntArrayRef sizes) {
  const auto block = Rooms::all().extend(past, growth, growth.bytes(fresh));
  if (!block) return {};
  auto shared = c10::impl::cow::lazy_clone_storage(*past.storage().unsafeGetStorageImpl());
  if (!shared) return {};
  const int64_t item = past.element_size(), start = past.storage_offset() * item + growth.bytes(past);
  const auto strides = growth.strides(sizes, *block, item);
  auto* behind = static_cast<char*>(const_cast<void*>(past.storage().data())) + start;
  at::from_blob(behind, fresh.sizes(), strides, fresh.options()).copy_(fresh);
  return on_memory(std::move(shared), past, sizes, strides, past.storage_offset());
}

inline at::Tensor grown(const at::Tensor& past, const at::Tensor& fresh, int64_t dim) {
  if (!can_grow(past, fresh, dim)) return at::cat({past, fresh}, dim);
  const Growth growth(past, dim);
  auto sizes = past.sizes().vec();
  sizes[growth.dim] += fresh.size(growth.dim);
  if (auto longer = continued(past, fresh, growth, sizes)) return *longer;
  const int64_t length = sizes[growth.dim];
  const int64_t spare = Rooms::all().has(past.storage().data()) ? std::max<int64_t>(length / 4, 32) : 0;
  const int64_t block = (length + spare) * growth.inner;
  auto memory = Rooms::all().make(growth.blocks(past), block, length * growth.inner);
  auto made = on_memory(std::move(memory), past, sizes, growth.strides(sizes, block, past.element_size()), 0);
  at::cat_out(made, {past, fresh}, growth.dim);
  return made;
}

}  // namespace tpfx
