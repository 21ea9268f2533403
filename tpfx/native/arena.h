// Memory that processes of one host share: a file without a name, which each has mapped as a whole, and in which each
// allocates from a region of its own.
//
//   auto arena = std::make_shared<Arena>(memory, size, begin, end);
//   allocate_from(arena);                        // every tensor on the CPU that is made from now on lies there
//
// What is free again is kept for others of its size, rounded to an eighth of a power of two; the pages of large blocks
// go back to the system. A tensor keeps the memory mapped.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace tpfx {

class Arena : public std::enable_shared_from_this<Arena> {
 public:
  // `file`: open, of `size` bytes; it may be closed afterwards. This process allocates from `begin` to `end`.
  Arena(int file, int64_t size, int64_t begin, int64_t end) : size_(size), next_(begin), end_(end), process_(getpid()) {
    void* found = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    TORCH_CHECK(found != MAP_FAILED, "cannot map ", size, " bytes of shared memory: ", std::strerror(errno));
    base_ = static_cast<char*>(found);
  }
  ~Arena() { munmap(base_, size_); }
  Arena(const Arena&) = delete;

  bool has(const void* address) const { return address >= base_ && address < base_ + size_; }
  int64_t offset(const void* address) const { return static_cast<const char*>(address) - base_; }
  char* at(int64_t offset) const { return base_ + offset; }

  at::DataPtr allocate(int64_t bytes) {
    if (bytes == 0) return {nullptr, nullptr, &free, at::kCPU};
    std::lock_guard<std::mutex> lock(mutex_);
    char* block = take(rounded(bytes + kHeader));
    if (live_++ == 0) self_ = shared_from_this();
    char* data = block + kHeader;
    return {data, data, &free, at::kCPU};
  }

  // What `allocate` has given; by the process that has, or one that it has forked.
  static void free(void* data) {
    if (data == nullptr) return;
    char* block = static_cast<char*>(data) - kHeader;
    Arena& owner = *header(block).owner;
    std::shared_ptr<Arena> last;  // is let go without the lock
    std::lock_guard<std::mutex> lock(owner.mutex_);
    owner.give_back(block);
    if (--owner.live_ == 0) last.swap(owner.self_);
  }

 private:
  static constexpr int64_t kHeader = 64, kLarge = int64_t(32) << 20, kPage = 4096;

  struct Header {
    Arena* owner;
    int64_t bytes;
  };
  static Header& header(char* block) { return *reinterpret_cast<Header*>(block); }

  // Eight sizes to each power of two; lines of 64 bytes, or pages.
  static int64_t rounded(int64_t bytes) {
    const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)));
    const int64_t step = std::max<int64_t>(power / 8, 64);
    const int64_t found = (bytes + step - 1) / step * step;
    return found < kLarge ? found : (found + kPage - 1) / kPage * kPage;
  }

  char* take(int64_t bytes) {
    auto& kept = free_[bytes];
    char* block = nullptr;
    if (kept.empty()) {
      if (bytes >= kLarge) next_ = (next_ + kPage - 1) / kPage * kPage;
      TORCH_CHECK_WITH(OutOfMemoryError, next_ + bytes <= end_, "no ", bytes, " bytes are left of shared memory");
      block = at(next_);
      next_ += bytes;
    } else {
      block = kept.back();
      kept.pop_back();
    }
    header(block) = Header{this, bytes};
    return block;
  }

  void give_back(char* block) {
    const int64_t bytes = header(block).bytes;
    free_[bytes].push_back(block);
    if (bytes >= kLarge && getpid() == process_) madvise(block, bytes, MADV_REMOVE);
  }

  const int64_t size_;
  char* base_;
  int64_t next_;
  const int64_t end_;
  const pid_t process_;
  std::mutex mutex_;
  std::unordered_map<int64_t, std::vector<char*>> free_;  // blocks by their sizes
  int64_t live_ = 0;
  std::shared_ptr<Arena> self_;  // while any block is in use
};

class ArenaAllocator final : public c10::Allocator {
 public:
  explicit ArenaAllocator(std::shared_ptr<Arena> arena) : arena_(std::move(arena)) {}
  at::DataPtr allocate(size_t bytes) override { return arena_->allocate(static_cast<int64_t>(bytes)); }
  at::DeleterFnPtr raw_deleter() const override { return &Arena::free; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

 private:
  const std::shared_ptr<Arena> arena_;
};

// Every tensor on the CPU that this process makes from now on lies in an arena.
inline void allocate_from(std::shared_ptr<Arena> arena) {
  c10::SetCPUAllocator(new ArenaAllocator(std::move(arena)), 1);
}

}  // namespace tpfx
