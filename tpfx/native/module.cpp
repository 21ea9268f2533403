// The Python module: programs, and the meetings of their ranks. Built at first use, by `build.py`.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "parcel.h"
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

// A collective of a rank, into `output`, which of all_reduce and broadcast is `input`.
void meet(SharedMeeting& meeting, Kind kind, Reduction reduction, int64_t root, at::Tensor input, at::Tensor output,
          std::vector<int64_t> received, std::vector<int64_t> sent) {
  Call call{kind, reduction, root, std::move(input), std::move(output), std::move(received), std::move(sent)};
  meeting.meet(0, meeting.generation(), std::move(call));
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
      .def("begin", &SharedMeeting::begin, py::arg("generation") = 0)
      .def("reset", &SharedMeeting::reset)
      .def_property_readonly("generation", &SharedMeeting::generation)
      .def("fail", &SharedMeeting::fail)
      .def("missing", &SharedMeeting::missing)
      .def("ended", &SharedMeeting::ended)
      .def("calls", [](const SharedMeeting& meeting) { return listed(meeting.calls()); })
      .def("gather", &SharedMeeting::gather, py::call_guard<Unlocked>())
      .def("meet", &meet, py::call_guard<Unlocked>());

  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<int64_t, int64_t, std::shared_ptr<Meeting>>())
      .def("add_op", &Program::add_op)
      .def("add_item", &Program::add_item)
      .def("add_number", &Program::add_number)
      .def("add_grow", &Program::add_grow)
      .def("add_dense_rows", &Program::add_dense_rows)
      .def("add_callback", &Program::add_callback)
      .def("add_collective", &Program::add_collective)
      .def("finish", &Program::finish)
      .def("run", &Program::run)
      .def("time", &Program::time, py::arg("on"), py::arg("gpu") = py::none())
      .def("take_times", &Program::take_times)
      .def("__len__", &Program::size)
      .def_property_readonly("position", &Program::position);

  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
      .def(py::init<int, int64_t, int64_t, int64_t>(), py::arg("file"), py::arg("size"), py::arg("begin"), py::arg("end"))
      .def("has", [](const Arena& arena, const at::Tensor& one) { return arena.has(one.storage().data()); })
      .def("read", [](const Arena& arena, int64_t offset, int64_t length) { return py::bytes(arena.at(offset), length); })
      .def("write", [](const std::shared_ptr<Arena>& arena, const py::bytes& text) {
        return std::make_shared<Block>(arena, std::string(text));
      });
  py::class_<Block, std::shared_ptr<Block>>(m, "Block").def_property_readonly("place", &Block::place);
  m.def("allocate_from", &allocate_from);

  py::class_<Leases, std::shared_ptr<Leases>>(m, "Leases")
      .def(py::init<>())
      .def("take_ended", &Leases::take_ended);
  py::class_<Sent>(m, "Sent")
      .def(py::init<std::shared_ptr<Arena>, std::vector<py::tuple>, const py::tuple&, const py::function&>())
      .def("places", &Sent::places)
      .def("unpack", &Sent::unpack);
  py::class_<Lent>(m, "Lent")
      .def(py::init<>())
      .def("take_back", &Lent::take_back)
      .def("__len__", &Lent::count);
  py::class_<Desk>(m, "Desk")
      .def(py::init<std::shared_ptr<Arena>>())
      .def("unpack", &Desk::unpack)
      .def("pack", &Desk::pack);

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
