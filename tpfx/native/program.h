// One rank's graph as a list of instructions over registers, which a thread runs without Python's lock.
//
// An op is called through torch's dispatcher, boxed, so that its kernels, the profiler and custom ops see what they
// always see. A register is freed after its last use. What is not an op of torch is called back in Python, with the
// lock.
#pragma once

#include <ATen/record_function.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "growing.h"
#include "instructions.h"
#include "meeting.h"

namespace tpfx {

// As torch's own bindings have it: IndexError stays IndexError.
[[noreturn]] inline void rethrow_in_python(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Left&) {
    throw;
  } catch (const py::error_already_set&) {
    throw;
  } catch (...) {
    torch::translate_exception_to_python(thrown);
    throw py::error_already_set();
  }
}

// Nanoseconds of the clock that Python's time.perf_counter_ns reads, the same in all processes of a host.
inline int64_t now() {
#if defined(__APPLE__)
  return static_cast<int64_t>(clock_gettime_nsec_np(CLOCK_UPTIME_RAW));
#else
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{1000000000} * time.tv_sec + time.tv_nsec;
#endif
}

class Program {
 public:
  Program(int64_t registers, int64_t seat, std::shared_ptr<Meeting> meeting)
      : registers_(registers), seat_(seat), meeting_(std::move(meeting)) {}

  ~Program() {
    py::gil_scoped_acquire locked;  // for the functions
    code_.clear();
  }

  // Building: one instruction for each node of the graph. `out` is the register of its result.

  // Ellipsis stands for an argument's default.
  void add_op(const std::string& name, const std::string& overload, const py::list& args, int64_t out) {
    Instruction made{Instruction::op, {}, out};
    made.handle = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
    const auto& formal = made.handle->schema().arguments();
    TORCH_CHECK(formal.size() == args.size(), name, " takes ", formal.size(), " arguments, not ", args.size());
    for (size_t at = 0; at < formal.size(); ++at) {
      Arg arg;
      if (py::isinstance<py::ellipsis>(args[at])) {
        TORCH_CHECK(formal[at].default_value(), name, ": ", formal[at].name(), " has no default");
        arg.value = *formal[at].default_value();
      } else {
        arg = Binder::bind(args[at], formal[at].real_type());
      }
      made.args.push_back(std::move(arg));
    }
    made.returns = made.handle->schema().returns().size();
    code_.push_back(std::move(made));
  }

  void add_item(const py::object& value, int64_t index, int64_t out) {
    add(Instruction{Instruction::item, {Binder::any(value), constant(index)}, out});
  }

  void add_number(char sign, const py::object& left, const py::object& right, int64_t out) {
    Instruction made{Instruction::number, {Binder::any(left), Binder::any(right)}, out};
    made.sign = sign;
    add(std::move(made));
  }

  // `cat` of two tensors, the first of which is a step's past.
  void add_grow(const py::object& past, const py::object& fresh, int64_t dim, int64_t out) {
    add(Instruction{Instruction::grow, {Binder::any(past), Binder::any(fresh), constant(dim)}, out});
  }

  // A tensor whose last dimension lies densely: the argument, if it does.
  void add_dense_rows(const py::object& given, int64_t out) {
    add(Instruction{Instruction::dense_rows, {Binder::any(given)}, out});
  }

  void add_callback(py::object function, const py::list& args, int64_t out) {
    Instruction made{Instruction::callback, {}, out};
    for (auto arg : args) made.args.push_back(Binder::any(arg));
    made.function = std::move(function);
    add(std::move(made));
  }

  // `in_place`: the result is the argument, as of all_reduce_.
  void add_collective(Kind kind, Reduction reduction, bool in_place, int64_t root, std::vector<int64_t> received,
                      std::vector<int64_t> sent, const py::object& value, int64_t out) {
    TORCH_CHECK(meeting_, "a collective without a meeting");
    Instruction made{Instruction::collective, {Binder::any(value), constant(in_place)}, out};
    made.call = Call{kind, reduction, root, {}, {}, std::move(received), std::move(sent)};
    add(std::move(made));
  }

  // The registers of the arguments, -1 for those that nothing uses, the results, and what each instruction is called.
  void finish(std::vector<int64_t> inputs, const py::list& outputs, std::vector<std::string> names) {
    TORCH_CHECK(names.size() == code_.size(), "a name for each instruction");
    inputs_ = std::move(inputs);
    names_ = std::move(names);
    for (auto one : outputs) outputs_.push_back(Binder::any(one));
    std::vector<bool> used(registers_);
    mark_last(outputs_, used);
    for (auto one = code_.rbegin(); one != code_.rend(); ++one) mark_last(one->args, used);
  }

  int64_t size() const { return static_cast<int64_t>(code_.size()); }
  // The instruction that runs, or that failed.
  int64_t position() const { return position_.load(std::memory_order_relaxed); }

  // While this is on, it is noted of each run when each instruction starts, and when the last has ended. On a `gpu`,
  // which runs behind, each is waited for. Not while it runs.
  void time(bool on, std::optional<c10::Device> gpu) {
    timed_ = on;
    gpu_ = gpu;
  }

  // What has been noted since it was asked for before, a row for each run: one number more than there are instructions.
  at::Tensor take_times() {
    const auto times = std::exchange(times_, {});
    const auto columns = size() + 1;
    const auto made = at::empty({static_cast<int64_t>(times.size()) / columns, columns}, at::kLong);
    std::copy(times.begin(), times.end(), made.data_ptr<int64_t>());
    return made;
  }

  uint64_t generation() const { return meeting_ ? meeting_->generation() : 0; }

  py::list run(const py::tuple& given) {
    std::vector<IValue> registers = registers_of(given);
    std::vector<IValue> results;
    std::exception_ptr thrown;
    {
      Unlocked unlocked;
      try {
        results = carry_out(registers, generation());
      } catch (...) {
        thrown = caught();
      }
      registers.clear();
    }
    if (thrown) rethrow_in_python(thrown);
    return to_python(std::move(results));
  }

  // The registers at the start, with the arguments in theirs. With Python's lock, as is `to_python`.
  std::vector<IValue> registers_of(const py::handle& given) const {
    std::vector<IValue> registers(registers_);
    for (size_t at = 0; at < inputs_.size(); ++at)
      if (inputs_[at] >= 0) registers[inputs_[at]] = value_of(PyTuple_GET_ITEM(given.ptr(), at));
    return registers;
  }

  static py::list to_python(std::vector<IValue> results) {
    py::list made(results.size());
    for (size_t at = 0; at < results.size(); ++at) made[at] = torch::jit::toPyObject(std::move(results[at]));
    return made;
  }

  // Run, without Python's lock; `generation`: that of the meeting when this was asked for.
  std::vector<IValue> carry_out(std::vector<IValue>& registers, uint64_t generation) {
    torch::jit::Stack stack;
    const bool watched = at::hasCallbacks();  // by a profiler
    std::vector<int64_t> times;
    for (size_t at = 0; at < code_.size(); ++at) {
      position_.store(static_cast<int64_t>(at), std::memory_order_relaxed);
      if (timed_) note_time(times);
      if (watched) {
        RECORD_USER_SCOPE(names_[at].c_str());
        step(code_[at], registers, stack, generation);
      } else {
        step(code_[at], registers, stack, generation);
      }
    }
    if (timed_) {
      note_time(times);
      times_.insert(times_.end(), times.begin(), times.end());
    }
    stack.clear();
    std::vector<IValue> results;
    for (const Arg& one : outputs_) results.push_back(one.take(registers));
    return results;
  }

 private:
  static Arg constant(IValue value) {
    Arg made;
    made.value = std::move(value);
    return made;
  }

  void add(Instruction made) { code_.push_back(std::move(made)); }

  static void mark_last(std::vector<Arg>& args, std::vector<bool>& used) {
    for (auto arg = args.rbegin(); arg != args.rend(); ++arg) {
      if (arg->form == Arg::reg) {
        arg->last = !used[arg->index];
        used[arg->index] = true;
      }
      mark_last(arg->items, used);
    }
  }

  void note_time(std::vector<int64_t>& times) const {
    if (gpu_) {
      const c10::impl::VirtualGuardImpl guard(gpu_->type());
      guard.synchronizeStream(guard.getStream(*gpu_));
    }
    times.push_back(now());
  }

  void step(const Instruction& one, std::vector<IValue>& registers, torch::jit::Stack& stack, uint64_t generation) {
    switch (one.form) {
      case Instruction::op: return call_op(one, registers, stack);
      case Instruction::item: return set(one, registers, item(one.args[0].take(registers), one.args[1].value.toInt()));
      case Instruction::collective: return set(one, registers, meet(one, registers, generation));
      case Instruction::number:
        return set(one, registers, calculate(one.sign, one.args[0].take(registers), one.args[1].take(registers)));
      case Instruction::grow: return set(one, registers, grow(one, registers));
      case Instruction::dense_rows: return set(one, registers, dense_rows(one.args[0].take(registers).toTensor()));
      case Instruction::callback: return call_back(one, registers);
    }
  }

  static void set(const Instruction& one, std::vector<IValue>& registers, IValue value) {
    if (one.out >= 0) registers[one.out] = std::move(value);
  }

  static void call_op(const Instruction& one, std::vector<IValue>& registers, torch::jit::Stack& stack) {
    stack.clear();
    for (const Arg& arg : one.args) stack.push_back(arg.take(registers));
    one.handle->callBoxed(stack);
    if (one.out < 0 || one.returns == 0) return;
    if (one.returns == 1) {
      registers[one.out] = std::move(stack.back());
    } else {
      registers[one.out] = c10::ivalue::Tuple::create(std::vector<IValue>(stack.begin(), stack.end()));
    }
    stack.clear();
  }

  static IValue item(const IValue& value, int64_t index) {
    if (value.isTuple()) return value.toTupleRef().elements()[index];
    return value.toListRef()[index];
  }

  IValue meet(const Instruction& one, std::vector<IValue>& registers, uint64_t generation) {
    const IValue given = one.args[0].take(registers);
    Call call = one.call;
    call.input = given.toTensor();
    call.output = room_for(call, one.args[1].value.toBool());
    if (call.kind == Kind::all_reduce || call.kind == Kind::broadcast) call.input = call.output;
    at::Tensor made = call.output;
    meeting_->meet(seat_, generation, std::move(call));
    return made;
  }

  at::Tensor room_for(const Call& call, bool in_place) const {
    const at::Tensor& given = call.input;
    if (in_place) return given;
    auto shape = given.sizes().vec();
    switch (call.kind) {
      case Kind::all_gather: shape[0] *= meeting_->size(); break;
      case Kind::reduce_scatter: shape[0] /= meeting_->size(); break;
      case Kind::all_to_all: shape[0] = total(call.received); break;
      default: return given.clone(at::MemoryFormat::Contiguous);
    }
    return at::empty(shape, given.options());
  }

  static int64_t total(const std::vector<int64_t>& counts) {
    int64_t sum = 0;
    for (auto one : counts) sum += one;
    return sum;
  }

  static IValue grow(const Instruction& one, std::vector<IValue>& registers) {
    const IValue past = one.args[0].take(registers), fresh = one.args[1].take(registers);
    return grown(past.toTensor(), fresh.toTensor(), one.args[2].value.toInt());
  }

  static at::Tensor dense_rows(at::Tensor given) {
    return given.dim() == 0 || given.stride(-1) == 1 ? given : given.contiguous();
  }

  // As Python's integers do; of floats only what the three first signs say.
  static IValue calculate(char sign, const IValue& left, const IValue& right) {
    if (!left.isInt() || !right.isInt()) return calculate(sign, left.toScalar().toDouble(), right.toScalar().toDouble());
    const int64_t a = left.toInt(), b = right.toInt();
    TORCH_CHECK(b != 0 || (sign != '/' && sign != '%'), "division of a size by zero");
    const bool inexact = (sign == '/' || sign == '%') && a % b != 0 && ((a < 0) != (b < 0));
    switch (sign) {
      case '+': return a + b;
      case '-': return a - b;
      case '*': return a * b;
      case '/': return a / b - (inexact ? 1 : 0);
      case '%': return a % b + (inexact ? b : 0);
      case '<': return std::min(a, b);
      default: return std::max(a, b);
    }
  }

  static IValue calculate(char sign, double a, double b) {
    TORCH_CHECK(sign == '+' || sign == '-' || sign == '*', "arithmetic of floats: ", sign);
    return sign == '+' ? a + b : sign == '-' ? a - b : a * b;
  }

  static void call_back(const Instruction& one, std::vector<IValue>& registers) {
    py::gil_scoped_acquire locked;
    py::tuple args(one.args.size());
    for (size_t at = 0; at < one.args.size(); ++at) args[at] = torch::jit::toPyObject(one.args[at].take(registers));
    const py::object made = one.function(*args);
    set(one, registers, value_of(made));
  }

  const int64_t registers_, seat_;
  const std::shared_ptr<Meeting> meeting_;
  std::vector<Instruction> code_;
  std::vector<int64_t> inputs_;
  std::vector<std::string> names_;
  std::vector<Arg> outputs_;
  std::atomic<int64_t> position_{0};
  bool timed_ = false;
  std::optional<c10::Device> gpu_;
  std::vector<int64_t> times_;
};

}  // namespace tpfx
