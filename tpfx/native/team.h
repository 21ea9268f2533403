// The threads of the ranks, as they wait for work and carry out programs, all without Python's lock.
//
// A thread sits in `Seat::wait`. It leaves only for what is Python's: a call in Python, or an error of a program. A
// Round is one program for each seat, all at once; whoever runs it waits, or carries out a program itself.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <deque>

#include "program.h"

namespace tpfx {

// The modes of the thread that starts a round.
struct Modes {
  bool grad, inference;
};

// Below autograd where nothing is to be recorded, as `below_autograd` in Python has it.
class InModes {
 public:
  explicit InModes(Modes modes) : grad_(modes.grad) {
    if (modes.inference) inference_.emplace(true);
    else if (!modes.grad) below_.emplace();
  }

 private:
  at::AutoGradMode grad_;
  std::optional<c10::InferenceMode> inference_;
  std::optional<at::AutoDispatchBelowAutograd> below_;
};

// Whether ops do here as they do in a thread of their own: no mode of Python's, no autocast.
inline bool is_plain_thread() {
  const auto modes = c10::impl::tls_local_dispatch_key_set();
  const auto tracked = c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView) | c10::autograd_dispatch_keyset;
  return modes.included_ - tracked == c10::default_included_set - tracked &&
         modes.excluded_ - tracked == c10::default_excluded_set - tracked;
}

// In a thread that sleeps in a collective: Ctrl-C gets through.
inline void look_for_signals() {
  py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// What the seats of one round report to.
class Report {
 public:
  explicit Report(size_t size) : results(size), back_(size, false), left_(size) {}

  std::vector<std::vector<IValue>> results;

  void done(size_t index, bool well) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (back_[index]) return;
    back_[index] = true;
    failed_ = failed_ || !well;
    if (--left_ == 0 || failed_) changed_.notify_all();
  }

  // Whether it is over by then: all are back, or (`or_failed`) one has failed.
  bool wait(double seconds, bool or_failed) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                             [&] { return left_ == 0 || (or_failed && failed_); });
  }

  bool failed() {
    std::lock_guard<std::mutex> lock(mutex_);
    return failed_;
  }

  std::vector<size_t> missing() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<size_t> found;
    for (size_t at = 0; at < back_.size(); ++at)
      if (!back_[at]) found.push_back(at);
    return found;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> back_;
  size_t left_;
  bool failed_ = false;
};

struct Task {
  std::shared_ptr<Program> program;
  std::vector<IValue> registers;
  uint64_t generation;
  Modes modes;
  std::shared_ptr<Report> report;
  size_t index;
};

// The error, if any. The report is not told: whoever holds the program may let go of it then.
inline std::exception_ptr carry_out(Task& task) {
  try {
    InModes modes(task.modes);
    task.report->results[task.index] = task.program->carry_out(task.registers, task.generation);
    task.registers.clear();
    return nullptr;
  } catch (...) {
    return caught();
  }
}

// Where the thread of one rank waits for work.
class Seat {
 public:
  // Carry out programs until something in Python is to be done; raises what a program raises, see `failed`.
  void wait() {
    std::exception_ptr thrown;
    {
      Unlocked unlocked;
      while (next()) {
        thrown = carry_out_task();
        if (thrown || given_up_.load()) break;
      }
    }
    if (thrown) rethrow_in_python(thrown);
  }

  // Something in Python is to be done.
  void wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    changed_.notify_one();
  }

  void start(Task task) {
    std::lock_guard<std::mutex> lock(mutex_);
    task_.emplace(std::move(task));
    changed_.notify_one();
  }

  // The error that `wait` has raised is taken care of.
  void failed() { finish(false); }

  // The thread shall leave once it is back.
  void give_up() { given_up_.store(true); }

  // The program that runs, or that has failed.
  std::shared_ptr<Program> program() {
    std::lock_guard<std::mutex> lock(mutex_);
    return task_ ? task_->program : nullptr;
  }

 private:
  // Whether there is a program to carry out; if not, Python is called for.
  bool next() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return calls_ > 0 || task_; });
    if (task_) return true;
    --calls_;
    return false;
  }

  std::exception_ptr carry_out_task() {
    const auto thrown = carry_out(*task_);  // nobody else changes it before it is finished
    if (!thrown) finish(true);
    return thrown;
  }

  void finish(bool well) {
    std::optional<Task> task;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task.swap(task_);
    }
    const auto report = task->report;
    const auto index = task->index;
    task.reset();  // whoever waits for the report holds the program too, and may let go of it then
    report->done(index, well);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Task> task_;
  int64_t calls_ = 0;
  std::atomic<bool> given_up_{false};
};

// A program for each of some seats; those that have no seat are carried out by who runs the round.
class Round {
 public:
  // `rows`: of each, the arguments as a tuple; the list is emptied, so that only the registers hold them.
  Round(std::vector<std::shared_ptr<Seat>> seats, const std::vector<std::shared_ptr<Program>>& programs,
        const py::list& rows, bool grad, bool inference)
      : seats_(std::move(seats)), report_(std::make_shared<Report>(seats_.size())) {
    for (size_t at = 0; at < seats_.size(); ++at)
      tasks_.push_back(Task{programs[at], programs[at]->registers_of(rows[at]), programs[at]->generation(),
                            Modes{grad, inference}, report_, at});
    if (PyList_SetSlice(rows.ptr(), 0, PyList_GET_SIZE(rows.ptr()), nullptr) != 0) throw py::error_already_set();
  }

  // Start all, and wait: the results, or None once one has failed. One call, so that Ctrl-C comes in no gap. Raises
  // what Ctrl-C does, and what a program raises that ran here: then `failed_here`.
  py::object run() {
    std::exception_ptr thrown;
    {
      Unlocked unlocked;
      started_ = true;
      for (size_t at = 0; at < seats_.size(); ++at)
        if (seats_[at]) seats_[at]->start(std::move(tasks_[at]));
      thrown = carry_out_own();
    }
    failed_here_ = thrown != nullptr;
    if (thrown) rethrow_in_python(thrown);
    return join();
  }

  bool failed_here() const { return failed_here_; }

  // The seats that are not back in so many seconds. Who asks carries out nothing any more.
  std::vector<size_t> settle(double seconds) {
    if (!started_) return {};
    Unlocked unlocked;
    for (size_t at = 0; at < seats_.size(); ++at)
      if (!seats_[at]) report_->done(at, false);
    report_->wait(seconds, false);
    return report_->missing();
  }

 private:
  std::exception_ptr carry_out_own() {
    between_waits = look_for_signals;
    std::exception_ptr thrown;
    for (size_t at = 0; at < seats_.size() && !thrown; ++at)
      if (!seats_[at] && !(thrown = carry_out(tasks_[at]))) report_->done(at, true);
    between_waits = nullptr;
    return thrown;
  }

  py::object join() {
    for (bool over = false; !over;) {
      {
        Unlocked unlocked;
        over = report_->wait(0.05, true);
      }
      if (!over && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    if (report_->failed()) return py::none();
    py::list made;
    for (auto& results : report_->results) made.append(Program::to_python(std::move(results)));
    return made;
  }

  const std::vector<std::shared_ptr<Seat>> seats_;
  const std::shared_ptr<Report> report_;
  std::vector<Task> tasks_;
  bool started_ = false, failed_here_ = false;
};

}  // namespace tpfx
