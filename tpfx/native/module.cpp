// The Python module: programs, and the meetings of their ranks. Built at first use, by `build.py`.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "program.h"

namespace {

using namespace tpfx;

// Of the calls that each rank has made: (kind, reduction, root, tensor, received, sent).
py::list calls_of(const Meeting& meeting) {
  py::list made;
  for (const Call& call : meeting.calls())
    made.append(py::make_tuple(call.kind, call.reduction, call.root, call.input, call.received, call.sent));
  return made;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::enum_<Kind>(m, "Kind")
      .value("all_reduce", Kind::all_reduce)
      .value("all_gather", Kind::all_gather)
      .value("reduce_scatter", Kind::reduce_scatter)
      .value("all_to_all", Kind::all_to_all)
      .value("broadcast", Kind::broadcast);
  py::enum_<Reduction>(m, "Reduction")
      .value("none", Reduction::none)
      .value("sum", Reduction::sum)
      .value("avg", Reduction::avg)
      .value("product", Reduction::product)
      .value("min", Reduction::min)
      .value("max", Reduction::max);

  static py::exception<Left> left(m, "Left");
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Left& one) {
      static const char* const why[] = {"aborted", "timed out", "disagreed"};
      py::set_error(left, why[one.why]);
    }
  });

  py::class_<Register>(m, "Register").def(py::init<int64_t>());

  py::class_<Meeting, std::shared_ptr<Meeting>>(m, "Meeting")
      .def(py::init<int64_t, double, int64_t>(), py::arg("size"), py::arg("timeout"), py::arg("big"))
      .def("abort", &Meeting::abort)
      .def("reset", &Meeting::reset)
      .def("missing", &Meeting::missing)
      .def("calls", &calls_of);

  py::class_<Program>(m, "Program")
      .def(py::init<int64_t, int64_t, std::shared_ptr<Meeting>>())
      .def("add_op", &Program::add_op)
      .def("add_item", &Program::add_item)
      .def("add_number", &Program::add_number)
      .def("add_callback", &Program::add_callback)
      .def("add_collective", &Program::add_collective)
      .def("finish", &Program::finish)
      .def("run", &Program::run)
      .def("__len__", &Program::size)
      .def_property_readonly("position", &Program::position);
}
