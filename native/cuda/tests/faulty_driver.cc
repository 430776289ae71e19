// SPDX-License-Identifier: Apache-2.0
//
// The one-page driver on a card that gets lost while the file $CARD_LOST is there: "all" in it, and every
// call answers with an error; "events", and only measuring fails.
#define cuLaunchKernel healthy_cuLaunchKernel
#define cuEventRecord healthy_cuEventRecord
#define cuEventQuery healthy_cuEventQuery
#define cuStreamSynchronize healthy_cuStreamSynchronize
#define cuMemAlloc_v2 healthy_cuMemAlloc_v2
#include "stub_driver.cc"
#undef cuLaunchKernel
#undef cuEventRecord
#undef cuEventQuery
#undef cuStreamSynchronize
#undef cuMemAlloc_v2

#include <fstream>

namespace {

constexpr int kUnavailable = 46;

bool lost(const char* what) {
    std::ifstream file(std::getenv("CARD_LOST"));
    std::string word;
    return file >> word && (word == "all" || word == what);
}

} // namespace

STUB int cuLaunchKernel(void* function, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e,
                        unsigned f, unsigned g, void* stream, void** parameters, void** extra) {
    return lost("all") ? kUnavailable
                       : healthy_cuLaunchKernel(function, a, b, c, d, e, f, g, stream, parameters, extra);
}
STUB int cuEventRecord(Event* event, void* stream) {
    return lost("events") ? kUnavailable : healthy_cuEventRecord(event, stream);
}
STUB int cuEventQuery(Event* event) {
    return lost("events") ? kUnavailable : healthy_cuEventQuery(event);
}
STUB int cuStreamSynchronize(void* stream) {
    return lost("all") ? kUnavailable : healthy_cuStreamSynchronize(stream);
}
STUB int cuMemAlloc_v2(Ptr* pointer, std::size_t bytes) {
    return lost("all") ? kUnavailable : healthy_cuMemAlloc_v2(pointer, bytes);
}
