// SPDX-License-Identifier: Apache-2.0
#include "http.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace flexnpu {
namespace {

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
}

std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

Parsed bad(int status, const std::string& message) {
    Parsed parsed;
    parsed.state = Parsed::kBad;
    parsed.status = status;
    parsed.message = message;
    return parsed;
}

const char* reason(int status) {
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 431: return "Request Header Fields Too Large";
    default: return "Internal Server Error";
    }
}

} // namespace

Parsed parse_request(const std::string& bytes) {
    const auto end = bytes.find("\r\n\r\n");
    if (end == std::string::npos)
        return bytes.size() > kMostHead ? bad(431, "the head is longer than 8192 bytes") : Parsed{};
    if (end > kMostHead) return bad(431, "the head is longer than 8192 bytes");
    Parsed parsed;
    std::size_t at = bytes.find("\r\n");
    const std::string first = bytes.substr(0, at);
    const auto gap = first.find(' '), second = first.rfind(' ');
    if (gap == std::string::npos || gap == second || first.compare(second + 1, 7, "HTTP/1.") != 0)
        return bad(400, "this is no HTTP/1 request");
    parsed.request.method = first.substr(0, gap);
    parsed.request.path = first.substr(gap + 1, second - gap - 1);
    parsed.request.path = parsed.request.path.substr(0, parsed.request.path.find('?'));
    std::size_t length = 0;
    bool told = false;
    while (at < end) {
        const std::size_t begin = at + 2;
        at = bytes.find("\r\n", begin);
        const std::string line = bytes.substr(begin, at - begin);
        const auto colon = line.find(':');
        if (colon == std::string::npos) return bad(400, "a header line has no colon");
        const std::string name = lower(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
        if (name == "authorization") parsed.request.authorization = value;
        if (name == "transfer-encoding") return bad(400, "send the body with Content-Length, not Transfer-Encoding");
        if (name != "content-length") continue;
        const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), length);
        if (error != std::errc() || stop != value.data() + value.size() || told)
            return bad(400, "Content-Length is no whole number, or given twice");
        told = true;
    }
    if (length > kMostBody) return bad(413, "the body is longer than 65536 bytes");
    if (bytes.size() < end + 4 + length) return Parsed{};
    parsed.request.body = bytes.substr(end + 4, length);
    parsed.state = Parsed::kDone;
    return parsed;
}

std::string format_response(int status, const std::string& type, const std::string& body) {
    return "HTTP/1.1 " + std::to_string(status) + " " + reason(status) + "\r\nContent-Type: " + type +
           "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body;
}

} // namespace flexnpu
