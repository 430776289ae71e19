// SPDX-License-Identifier: GPL-3.0-or-later
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "ascend.h"
#include "hardware.h"
#include "wire.h"

namespace simacl {
namespace {

// Which of the visible cards this process asked for: ASCEND_RT_VISIBLE_DEVICES, "2,0", in its order. As in
// CANN a number that is none or too high ends the list.
std::vector<std::size_t> chosen(const std::vector<std::size_t>& visible) {
  const char* asked = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (asked == nullptr) return visible;
  std::vector<std::size_t> found;
  std::istringstream numbers(asked);
  std::string word;
  while (std::getline(numbers, word, ',')) {
    char* end = nullptr;
    const unsigned long index = std::strtoul(word.c_str(), &end, 10);
    if (end == word.c_str() || *end != '\0' || index >= visible.size()) break;
    found.push_back(visible[index]);
  }
  return found;
}

}  // namespace

Device::Device(const sim::Session& session, std::size_t card)
    : card_(session.fleet(), card, session.seat(), session.ticket()),
      kernel_ns_(static_cast<sim::Nanos>(
          sim::number(simascend::profile_of(card_.info()), "default_kernel_ns", card_.info().profile))) {}

std::uint64_t Device::submit(sim::ItemKind kind, sim::Nanos duration_ns) {
  const std::lock_guard<std::mutex> hold(submitting_);
  return card_.submit(kind, duration_ns, 0) + 1;
}

bool Device::take_context() {
  if (has_context_.exchange(true)) return true;
  if (card_.take(info().context_bytes)) return true;
  has_context_ = false;
  return false;
}

Runtime& Runtime::get() {
  static auto* const runtime = new Runtime;
  return *runtime;
}

rtError_t Runtime::open() {
  const std::lock_guard<std::mutex> hold(lock_);
  if (opened_) return RT_ERROR_NONE;
  session_ = sim::Session::open(simascend::socket_path(), sim::kTenant);
  if (!session_.ok()) {
    std::fprintf(stderr, "simulated runtime: %s\n", session_.error().c_str());
    return ACL_ERROR_RT_DRV_INTERNAL_ERROR;
  }
  for (const std::size_t card : chosen(simascend::visible(session_.fleet()))) {
    devices_.push_back(std::make_unique<Device>(session_, card));
  }
  opened_ = true;
  return RT_ERROR_NONE;
}

Device* Runtime::device(std::int32_t ordinal) const {
  return ordinal >= 0 && ordinal < count() ? devices_[static_cast<std::size_t>(ordinal)].get() : nullptr;
}

Context* Runtime::primary(std::int32_t ordinal) {
  const std::lock_guard<std::mutex> hold(lock_);
  auto& context = primaries_[ordinal];
  if (context == nullptr) {
    context = std::make_unique<Context>();
    context->ordinal = ordinal;
    context->device = device(ordinal);
    context->usual.context = context.get();
  }
  return context.get();
}

}  // namespace simacl
