// SPDX-License-Identifier: GPL-3.0-or-later
//
// What a simulated kernel is: a name and parameter list read from PTX text, and how long it runs.
// Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sim {

struct Parameter {
  std::size_t offset;  // in the packed parameter buffer
  std::size_t size;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
};

// The `.entry` functions of a PTX module in order; nothing when the text is not PTX (it has no
// `.version` directive) or an entry is malformed.
std::optional<std::vector<Kernel>> parse_ptx(std::string_view text);

// The parameters of one launch: pointers to each, or one packed buffer.
struct Arguments {
  void* const* each = nullptr;
  const void* packed = nullptr;
  std::size_t packed_size = 0;
};

// How long a launch runs on a card of its own. `spin_ns` runs for its first parameter; any other
// kernel runs for `default_ns`, whatever its grid.
std::int64_t duration_ns(const Kernel& kernel, const Arguments& arguments, std::int64_t default_ns);

// How far off the time stamp of an event is: the same for each question about it, independent from event to
// event, evenly spread over [-most_ns, most_ns].
std::int64_t jitter_ns(std::uint64_t event, std::int64_t most_ns);

}  // namespace sim
