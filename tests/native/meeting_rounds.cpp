// Rounds of collectives between three threads, of which one leaves here and there: prints what was wrong.
#include <ATen/ATen.h>
#include <torch/types.h>

#include <cstdio>
#include <random>

#include "meeting.h"

using namespace tpfx;

constexpr int SIZE = 3, COLLECTIVES = 4;

// One collective after another, each of the result before it; `leave`: before which the rank leaves, -1 for none.
float rank(ThreadMeeting& meeting, int seat, uint64_t generation, int leave) {
  auto x = at::ones({64});
  for (int at = 0; at < COLLECTIVES; ++at) {
    if (at == leave) {
      meeting.abort();
      throw Left(Left::aborted);
    }
    Call call;
    const bool reduces = at % 2 == 0;
    call.kind = reduces ? Kind::all_reduce : Kind::all_gather;
    call.reduction = reduces ? Reduction::sum : Reduction::none;
    call.input = x;
    call.output = reduces ? x : at::empty({64 * SIZE});
    const auto out = call.output;
    meeting.meet(seat, generation, std::move(call));
    x = reduces ? out : out.narrow(0, 64 * ((seat + 1) % SIZE), 64).contiguous();
  }
  return x[5].item<float>();
}

int main(int, char** given) {
  std::mt19937 chance(0);
  for (int64_t big : {int64_t(1) << 20, int64_t(0)}) {  // the last rank does all, each does a share
    ThreadMeeting meeting(SIZE, 20.0, big);
    for (int round = 0; round < std::atoi(given[1]); ++round) {
      const int failing = chance() % 4 == 0 ? int(chance() % SIZE) : -1, where = int(chance() % COLLECTIVES);
      const auto generation = meeting.generation();
      std::atomic<int> left{0}, wrong{0};
      std::vector<std::thread> threads;
      for (int seat = 0; seat < SIZE; ++seat)
        threads.emplace_back([&, seat] {
          try {
            wrong += rank(meeting, seat, generation, seat == failing ? where : -1) != float(SIZE * SIZE);
          } catch (const Left&) {
            ++left;
          }
        });
      for (auto& one : threads) one.join();
      if (wrong > 0 || (failing >= 0) != (left > 0)) std::printf("round %d: %d wrong, %d left\n", round, +wrong, +left);
      if (left > 0) meeting.reset();
    }
  }
}
