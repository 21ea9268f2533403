// GPUs for fake tensors where there are none: torch's CUDA build then captures, forward and backward, with the
// kernels that it would choose on such a GPU; nothing can be computed on them.
//
//   g++ -std=c++20 -shared -fPIC -Wl,-soname,libcuda.so.1 -I… fake_cuda.cpp -o libfake_cuda.so
//   LD_PRELOAD=./libfake_cuda.so FAKE_GPUS=2 FAKE_SM=80 python …
//
// It stands in front of the functions of torch that ask how many GPUs there are, which, and what they can do, and
// under the driver's name, for what torch looks up there.
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <cstdlib>
#include <cstring>

#define SHOWN __attribute__((visibility("default")))

static int number(const char* name, int otherwise) {
  const char* said = getenv(name);
  return said ? atoi(said) : otherwise;
}
static int count() { return number("FAKE_GPUS", 2); }
static thread_local c10::DeviceIndex now = 0;

namespace c10::cuda {
SHOWN bool hasPrimaryContext(DeviceIndex) { return false; }
SHOWN DeviceIndex device_count() noexcept { return count(); }
SHOWN DeviceIndex device_count_ensure_non_zero() { return count(); }
SHOWN DeviceIndex current_device() { return now; }
SHOWN void set_device(DeviceIndex index, const bool) { now = index; }
SHOWN void device_synchronize() {}
SHOWN cudaError_t GetDeviceCount(int* found) { return *found = count(), cudaSuccess; }
SHOWN cudaError_t GetDevice(DeviceIndex* index) { return *index = now, cudaSuccess; }
SHOWN cudaError_t SetDevice(DeviceIndex index, const bool) { return now = index, cudaSuccess; }
SHOWN cudaError_t MaybeSetDevice(DeviceIndex index) { return now = index, cudaSuccess; }
SHOWN DeviceIndex ExchangeDevice(DeviceIndex index) { return std::exchange(now, index); }
SHOWN DeviceIndex MaybeExchangeDevice(DeviceIndex index) { return std::exchange(now, index); }
SHOWN CUDAStream getDefaultCUDAStream(DeviceIndex index) {
  return CUDAStream(CUDAStream::UNCHECKED, Stream(Stream::UNSAFE, Device(DeviceType::CUDA, index < 0 ? now : index), 0));
}
SHOWN CUDAStream getCurrentCUDAStream(DeviceIndex index) { return getDefaultCUDAStream(index); }
SHOWN void setCurrentCUDAStream(CUDAStream) {}
}  // namespace c10::cuda

namespace at::cuda {
static cudaDeviceProp* properties() {  // of an H100, or what FAKE_SM says
  static cudaDeviceProp one = [] {
    cudaDeviceProp made;
    memset(&made, 0, sizeof(made));
    strcpy(made.name, "a GPU that is not there");
    made.major = number("FAKE_SM", 90) / 10, made.minor = number("FAKE_SM", 90) % 10;
    made.totalGlobalMem = 80ull << 30, made.multiProcessorCount = 132, made.warpSize = 32;
    made.sharedMemPerBlock = 48 << 10, made.sharedMemPerBlockOptin = 227 << 10;
    made.maxThreadsPerBlock = 1024, made.maxThreadsPerMultiProcessor = 2048, made.regsPerMultiprocessor = 65536;
    made.maxGridSize[0] = 2147483647, made.maxGridSize[1] = made.maxGridSize[2] = 65535;
    made.l2CacheSize = 50 << 20;
    return made;
  }();
  return &one;
}
SHOWN cudaDeviceProp* getCurrentDeviceProperties() { return properties(); }
SHOWN cudaDeviceProp* getDeviceProperties(c10::DeviceIndex) { return properties(); }
}  // namespace at::cuda

extern "C" {
SHOWN CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
SHOWN CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
SHOWN CUresult cuGetErrorString(CUresult, const char** text) { return *text = "there is no driver", CUDA_SUCCESS; }
SHOWN CUresult cuCtxGetCurrent(CUcontext* context) { return *context = nullptr, CUDA_SUCCESS; }
SHOWN CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 0, CUDA_SUCCESS;
}
}
