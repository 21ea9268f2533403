// The Python module: programs, and the meetings of their ranks. Built at first use, by `build.py`.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "team.h"
#include "shared_meeting.h"

namespace {

using namespace tpfx;

// Of the calls that each rank has made: (kind, reduction, root, tensor, received, sent).
py::list listed(const std::vector<Call>& calls) {
  py::list made;
  for (const Call& call : calls)
    made.append(py::make_tuple(call.kind, call.reduction, call.root, call.input, call.received, call.sent));
  return made;
}

// While a rank waits in C++, Python's signals are looked at: Ctrl-C ends the wait.
void raise_signals() {
  py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Over memory that the caller keeps mapped as long as this lives; `file` is its open file.
std::shared_ptr<SharedMeeting> shared_meeting(const py::buffer& memory, int file, int64_t seat, int64_t size,
                                              int64_t room, double timeout) {
  const py::buffer_info info = memory.request(/*writable=*/true);
  TORCH_CHECK(info.size * info.itemsize >= SharedMeeting::bytes(size, room), "too little shared memory");
  return std::make_shared<SharedMeeting>(info.ptr, file, seat, size, room, timeout, &raise_signals);
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
      static const char* const why[] = {"aborted", "timed out", "disagreed", "lost"};
      py::set_error(left, why[one.why]);
    }
  });

  py::class_<Register>(m, "Register").def(py::init<int64_t>());

  py::class_<Meeting, std::shared_ptr<Meeting>>(m, "Meeting");

  py::class_<ThreadMeeting, Meeting, std::shared_ptr<ThreadMeeting>>(m, "ThreadMeeting")
      .def(py::init<int64_t, double, int64_t>(), py::arg("size"), py::arg("timeout"), py::arg("big"))
      .def("abort", &ThreadMeeting::abort)
      .def("reset", &ThreadMeeting::reset)
      .def("missing", &ThreadMeeting::missing)
      .def("calls", [](const ThreadMeeting& meeting) { return listed(meeting.calls()); });

  py::class_<SharedMeeting, Meeting, std::shared_ptr<SharedMeeting>>(m, "SharedMeeting")
      .def(py::init(&shared_meeting), py::arg("memory"), py::arg("file"), py::arg("seat"), py::arg("size"),
           py::arg("room"), py::arg("timeout"))
      .def_static("bytes", &SharedMeeting::bytes, py::arg("size"), py::arg("room"))
      .def("begin", &SharedMeeting::begin)
      .def("fail", &SharedMeeting::fail)
      .def("missing", &SharedMeeting::missing)
      .def("ended", &SharedMeeting::ended)
      .def("calls", [](const SharedMeeting& meeting) { return listed(meeting.calls()); })
      .def("gather", &SharedMeeting::gather, py::call_guard<py::gil_scoped_release>());

  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<int64_t, int64_t, std::shared_ptr<Meeting>>())
      .def("add_op", &Program::add_op)
      .def("add_item", &Program::add_item)
      .def("add_number", &Program::add_number)
      .def("add_grow", &Program::add_grow)
      .def("add_callback", &Program::add_callback)
      .def("add_collective", &Program::add_collective)
      .def("finish", &Program::finish)
      .def("run", &Program::run)
      .def("__len__", &Program::size)
      .def_property_readonly("position", &Program::position);

  m.def("is_plain_thread", &is_plain_thread);
  m.def("rooms", [] { return Rooms::all().count(); }, "How many memories of tensors that grow there are.");

  py::class_<Seat, std::shared_ptr<Seat>>(m, "Seat")
      .def(py::init<>())
      .def("wait", &Seat::wait)
      .def("wake", &Seat::wake)
      .def("failed", &Seat::failed)
      .def("give_up", &Seat::give_up)
      .def_property_readonly("program", &Seat::program);

  py::class_<Round>(m, "Round")
      .def(py::init<std::vector<std::shared_ptr<Seat>>, const std::vector<std::shared_ptr<Program>>&,
                    const py::list&, bool, bool>())
      .def("run", &Round::run)
      .def_property_readonly("failed_here", &Round::failed_here)
      .def("settle", &Round::settle);
}
