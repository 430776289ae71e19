// SPDX-License-Identifier: Apache-2.0
#include "xpu/place.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace xpu {
namespace {

const char* path_of(const char* product_path, [[maybe_unused]] const char* variable) noexcept {
#ifdef XPU_TEST_PATHS
    if (const char* chosen = std::getenv(variable)) return chosen;
#endif
    return product_path;
}

} // namespace

const char* config_page_path() noexcept {
    return path_of("/etc/xpu/config.page", "XPU_CONFIG_PAGE");
}

const char* ledger_page_path() noexcept {
    return path_of("/run/xpu/ledger.page", "XPU_LEDGER_PAGE");
}

bool name_beside(const char* path, const char* name, char (&out)[256]) noexcept {
    const char* slash = std::strrchr(path, '/');
    const std::size_t directory = slash == nullptr ? 0 : static_cast<std::size_t>(slash - path) + 1;
    if (directory + std::strlen(name) >= sizeof out) return false;
    std::memcpy(out, path, directory);
    std::strcpy(out + directory, name);
    return true;
}

OnError parse_on_error(std::string_view text) noexcept {
    if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    return text == "deny-new-memory" ? OnError::kDenyNewMemory : OnError::kAllow;
}

OnError read_on_error(const char* config_page_path) noexcept {
    char path[256], text[32];
    if (!name_beside(config_page_path, kOnErrorFile, path)) return OnError::kAllow;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return OnError::kAllow;
    ssize_t length = 0;
    do length = read(file, text, sizeof text);
    while (length < 0 && errno == EINTR);
    close(file);
    return length > 0 ? parse_on_error({text, static_cast<std::size_t>(length)}) : OnError::kAllow;
}

} // namespace xpu
