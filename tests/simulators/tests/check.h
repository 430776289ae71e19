// SPDX-License-Identifier: GPL-3.0-or-later
//
// The smallest test harness that names a case: `program` lists the cases, `program CASE` runs one and
// exits 1 with file, line and both values when an expectation fails.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace check {

using Case = std::pair<const char*, void (*)()>;

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, void (*body)()) { cases().emplace_back(name, body); }
};

template <class A, class B>
void equal(const A& found, const B& wanted, const char* what, const char* file, int line) {
  if (found == wanted) return;
  std::ostringstream text;
  text << file << ":" << line << ": " << what << " is " << found << ", wanted " << wanted;
  std::fprintf(stderr, "%s\n", text.str().c_str());
  std::exit(1);
}

inline int main(int count, char** words) {
  for (const Case& one : cases()) {
    if (count < 2) std::printf("%s\n", one.first);
    else if (std::strcmp(one.first, words[1]) == 0) return one.second(), 0;
  }
  return count < 2 ? 0 : 2;
}

}  // namespace check

#define TEST(name)                                    \
  static void name();                                 \
  static const check::Register register_##name(#name, name); \
  static void name()
#define EQUAL(found, wanted) check::equal(found, wanted, #found, __FILE__, __LINE__)
