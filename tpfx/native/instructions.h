// What an instruction of a program is: an op, a collective, arithmetic of sizes, or a call of Python; and how its
// arguments are made of Python's values, in which registers may occur.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <optional>
#include <vector>

#include "meeting.h"

namespace tpfx {

namespace py = pybind11;
using c10::IValue;

// Python's lock is let go of while this lives. A thread that asks for it back when the process has begun to end is
// unwound by Python, and the destructor lets that through; pybind11's own, which may not throw, would abort the process.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() noexcept(false) { PyEval_RestoreThread(state_); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* const state_;
};

// In a handler of everything: what was thrown. Such an unwinding is no exception, and goes on.
inline std::exception_ptr caught() {
  std::exception_ptr thrown = std::current_exception();
  if (!thrown) throw;
  return thrown;
}

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
  enum Form { op, item, collective, number, grow, dense_rows, callback } form;
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

}  // namespace tpfx
