// SPDX-License-Identifier: Apache-2.0
//
// The little HTTP/1.1 that a local REST interface needs: one request a connection, bodies by Content-Length.
// Pure. A library would bring threads of its own into a daemon whose decisions all happen in one.
#pragma once

#include <cstddef>
#include <string>

namespace flexnpu {

constexpr std::size_t kMostHead = 8192;
constexpr std::size_t kMostBody = 65536;

struct Request {
    std::string method, path, body, authorization;
};

struct Parsed {
    enum State { kMore, kDone, kBad } state = kMore;
    Request request;
    int status = 400;     // of kBad
    std::string message;  // "
};

// What has come so far of one connection.
Parsed parse_request(const std::string& bytes);

std::string format_response(int status, const std::string& type, const std::string& body);

} // namespace flexnpu
