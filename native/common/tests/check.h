// SPDX-License-Identifier: Apache-2.0
//
// The least a test program needs: named cases, `program --list`, `program NAME`, and checks that
// print what they compared. A failed check ends the case.
#ifndef XPU_TESTS_CHECK_H
#define XPU_TESTS_CHECK_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Case {
    const char* name;
    void (*body)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Register {
    Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

template <typename T>
std::string shown(const T& value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

[[noreturn]] inline void failed(const char* file, int line, const std::string& what) {
    std::cerr << file << ":" << line << ": " << what << std::endl;
    std::exit(1);
}

// How often a case repeats what chance decides: `quick`, times XPU_TEST_ROUNDS where that is set.
inline int rounds(int quick) {
    const char* factor = std::getenv("XPU_TEST_ROUNDS");
    return factor == nullptr ? quick : quick * std::atoi(factor);
}

inline int run(int argc, char** argv) {
    const std::string wanted = argc > 1 ? argv[1] : "--list";
    for (const Case& one : cases()) {
        if (wanted == "--list") std::cout << one.name << "\n";
        if (wanted != one.name) continue;
        one.body();
        return 0;
    }
    return wanted == "--list" ? 0 : 2;
}

} // namespace check

#define CASE(name)                                                                                 \
    static void case_##name();                                                                     \
    static const check::Register register_##name(#name, case_##name);                              \
    static void case_##name()

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) check::failed(__FILE__, __LINE__, "not true: " #condition);              \
    } while (0)

#define CHECK_EQ(found, wanted)                                                                    \
    do {                                                                                           \
        const auto found_ = (found);                                                               \
        const auto wanted_ = (wanted);                                                             \
        if (!(found_ == wanted_))                                                                  \
            check::failed(__FILE__, __LINE__,                                                      \
                          #found " is " + check::shown(found_) + ", wanted " +                     \
                              check::shown(wanted_));                                              \
    } while (0)

// `found` within [low, high].
#define CHECK_IN(found, low, high)                                                                 \
    do {                                                                                           \
        const auto found_ = (found);                                                               \
        if (!(found_ >= (low) && found_ <= (high)))                                                \
            check::failed(__FILE__, __LINE__,                                                      \
                          #found " is " + check::shown(found_) + ", wanted between " +             \
                              check::shown(low) + " and " + check::shown(high));                   \
    } while (0)

#endif
