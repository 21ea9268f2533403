// One rank's graph as a list of instructions over registers, which a thread runs without Python's lock.
//
// An op is called through torch's dispatcher, boxed, so that its kernels, the profiler and custom ops see what they
// always see. A register is freed after its last use. What is not an op of torch is called back in Python, with the
// lock.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "growing.h"
#include "meeting.h"

namespace tpfx {

namespace py = pybind11;
using c10::IValue;

// In Python, where an argument is a register.
struct Register {
  int64_t index;
};

// A Python value as it is; lists become tuples, as what graphs take from one is an element.
inline IValue value_of(const py::handle& given) {
  PyObject* object = given.ptr();
  if (THPVariable_Check(object)) return THPVariable_Unpack(object);
  if (object == Py_None) return {};
  if (PyBool_Check(object)) return object == Py_True;
  if (PyLong_Check(object)) return given.cast<int64_t>();
  if (PyFloat_Check(object)) return given.cast<double>();
  if (!PyList_Check(object) && !PyTuple_Check(object))
    return torch::jit::toIValue(given, c10::PyObjectType::get());
  std::vector<IValue> items;
  for (auto item : given) items.push_back(value_of(item));
  return c10::ivalue::Tuple::create(std::move(items));
}

// A number where a tensor is asked for: it does not take part in the promotion of dtypes.
inline IValue wrapped_number(const at::Scalar& number) {
  at::Tensor made = at::scalar_to_tensor(number);
  made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

struct Arg {
  enum Form { constant, reg, integers, tensors, optional_tensors } form = constant;
  IValue value;
  int64_t index = -1;
  bool last = false;       // the register's last use
  bool to_float = false;   // an integer that the schema wants as a float
  bool to_tensor = false;  // a number that the schema wants as a tensor
  std::vector<Arg> items;

  IValue take(std::vector<IValue>& registers) const {
    switch (form) {
      case constant: return value;
      case reg: return take_register(registers);
      case integers: return list<int64_t>(registers, [](const IValue& one) { return one.toInt(); });
      case tensors: return list<at::Tensor>(registers, [](const IValue& one) { return one.toTensor(); });
      default:
        return list<std::optional<at::Tensor>>(registers, [](const IValue& one) {
          return one.isNone() ? std::optional<at::Tensor>() : std::optional<at::Tensor>(one.toTensor());
        });
    }
  }

 private:
  IValue take_register(std::vector<IValue>& registers) const {
    IValue& held = registers[index];
    if (to_float && held.isInt()) return static_cast<double>(held.toInt());
    if (to_tensor && held.isScalar()) return wrapped_number(held.toScalar());
    return last ? std::move(held) : held;
  }

  template <class T, class Function>
  IValue list(std::vector<IValue>& registers, Function&& convert) const {
    c10::List<T> made;
    made.reserve(items.size());
    for (const Arg& item : items) made.push_back(convert(item.take(registers)));
    return made;
  }
};

struct Instruction {
  enum Form { op, item, collective, number, grow, callback } form;
  std::vector<Arg> args;
  int64_t out;
  std::optional<c10::OperatorHandle> handle;   // of an op
  size_t returns = 1;                          // of an op
  Call call;                                   // of a collective: all but its tensors
  char sign = 0;                               // of a number: + - * / (floor) % < (min) > (max)
  py::object function;                         // of a callback
};

// How an argument of a schema's type is made of a Python value in which registers may occur.
class Binder {
 public:
  static Arg bind(const py::handle& given, const c10::TypePtr& type) {
    const c10::TypePtr inner = without_optional(type);
    const bool wants_tensor = inner->kind() == c10::TypeKind::TensorType;
    if (py::isinstance<Register>(given)) {
      Arg made = reg(given);
      made.to_float = inner->kind() == c10::TypeKind::FloatType;
      made.to_tensor = wants_tensor;
      return made;
    }
    Arg made;
    if (wants_tensor && (PyLong_Check(given.ptr()) || PyFloat_Check(given.ptr()))) {
      made.value = wrapped_number(value_of(given).toScalar());
    } else if (!has_register(given)) {
      made.value = torch::jit::toIValue(given, type);
    } else {
      made = list(given, inner);
    }
    return made;
  }

  static Arg any(const py::handle& given) {
    if (py::isinstance<Register>(given)) return reg(given);
    Arg made;
    made.value = value_of(given);
    return made;
  }

 private:
  static c10::TypePtr without_optional(const c10::TypePtr& type) {
    const auto optional = type->cast<c10::OptionalType>();
    return optional ? optional->getElementType() : type;
  }

  static Arg reg(const py::handle& given) {
    Arg made;
    made.form = Arg::reg;
    made.index = given.cast<Register>().index;
    return made;
  }

  static bool has_register(const py::handle& given) {
    if (py::isinstance<Register>(given)) return true;
    if (!PyList_Check(given.ptr()) && !PyTuple_Check(given.ptr())) return false;
    for (auto item : given)
      if (has_register(item)) return true;
    return false;
  }

  static Arg list(const py::handle& given, const c10::TypePtr& type) {
    const auto as_list = type->cast<c10::ListType>();
    TORCH_CHECK(as_list, "registers inside a value of type ", type->str());
    c10::TypePtr element = as_list->getElementType();
    Arg made;
    if (element->kind() == c10::TypeKind::IntType || element->kind() == c10::TypeKind::SymIntType) {
      made.form = Arg::integers;
      element = c10::IntType::get();
    } else if (element->kind() == c10::TypeKind::TensorType) {
      made.form = Arg::tensors;
    } else {
      TORCH_CHECK(element->kind() == c10::TypeKind::OptionalType, "registers in a list of ", element->str());
      made.form = Arg::optional_tensors;
    }
    for (auto item : given) made.items.push_back(bind(item, element));
    return made;
  }
};

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

  uint64_t generation() const { return meeting_ ? meeting_->generation() : 0; }

  py::list run(const py::tuple& given) {
    std::vector<IValue> registers = registers_of(given);
    std::vector<IValue> results;
    std::exception_ptr thrown;
    {
      py::gil_scoped_release unlocked;
      try {
        results = carry_out(registers, generation());
      } catch (...) {
        thrown = std::current_exception();
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
    for (size_t at = 0; at < code_.size(); ++at) {
      position_.store(static_cast<int64_t>(at), std::memory_order_relaxed);
      if (watched) {
        RECORD_USER_SCOPE(names_[at].c_str());
        step(code_[at], registers, stack, generation);
      } else {
        step(code_[at], registers, stack, generation);
      }
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

  void step(const Instruction& one, std::vector<IValue>& registers, torch::jit::Stack& stack, uint64_t generation) {
    switch (one.form) {
      case Instruction::op: return call_op(one, registers, stack);
      case Instruction::item: return set(one, registers, item(one.args[0].take(registers), one.args[1].value.toInt()));
      case Instruction::collective: return set(one, registers, meet(one, registers, generation));
      case Instruction::number:
        return set(one, registers, calculate(one.sign, one.args[0].take(registers), one.args[1].take(registers)));
      case Instruction::grow: return set(one, registers, grow(one, registers));
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
};

}  // namespace tpfx
