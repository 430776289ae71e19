// SPDX-License-Identifier: Apache-2.0
//
// Where a slice's files lie in its container, and what the node wants done when they are unusable.
#ifndef XPU_PLACE_H
#define XPU_PLACE_H

#include <string_view>

namespace xpu {

// Fixed in a shipped build. Only a build for tests lets XPU_CONFIG_PAGE and XPU_LEDGER_PAGE
// choose: a tenant sets his own environment.
const char* config_page_path() noexcept;
const char* ledger_page_path() noexcept;

// Of `name` in the directory of `path`; false when it is longer than `out`.
bool name_beside(const char* path, const char* name, char (&out)[256]) noexcept;

// What becomes of a process whose grant or ledger is unusable. The node agent writes it beside the
// config page, as a file of its own: it is needed exactly when that page can't be trusted.
enum class OnError {
    kAllow,         // it runs without limits, or within limits of its own
    kDenyNewMemory, // it gets no device memory; everything else runs
};
constexpr const char* kOnErrorFile = "on_error";

// "deny-new-memory", with or without a newline; anything else is allow. Pure.
OnError parse_on_error(std::string_view text) noexcept;
OnError read_on_error(const char* config_page_path) noexcept;

} // namespace xpu
#endif
