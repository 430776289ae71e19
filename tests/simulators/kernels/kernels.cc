// SPDX-License-Identifier: GPL-3.0-or-later
#include "kernels.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace sim {
namespace {

std::string without_comments(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    if (text.substr(i, 2) == "//") {
      i = std::min(text.find('\n', i), text.size());
    } else if (text.substr(i, 2) == "/*") {
      const auto end = text.find("*/", i + 2);
      i = end == std::string_view::npos ? text.size() : end + 2;
      out += ' ';
    } else {
      out += text[i++];
    }
  }
  return out;
}

bool word_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' || c == '.';
}

// Words of letters, digits and . _ $ %, and every other character by itself.
std::vector<std::string> tokens_of(const std::string& text) {
  std::vector<std::string> tokens;
  for (std::size_t i = 0; i < text.size();) {
    if (std::isspace(static_cast<unsigned char>(text[i])) != 0) {
      ++i;
    } else if (word_character(text[i])) {
      const std::size_t begin = i;
      while (i < text.size() && word_character(text[i])) ++i;
      tokens.push_back(text.substr(begin, i - begin));
    } else {
      tokens.push_back(std::string(1, text[i++]));
    }
  }
  return tokens;
}

// ".u64" -> 8, 0 when it is no type.
std::size_t size_of_type(const std::string& word) {
  if (word.size() < 3 || word[0] != '.') return 0;
  if (std::string_view("usbf").find(word[1]) == std::string_view::npos) return 0;
  const std::size_t bits = std::strtoul(word.c_str() + 2, nullptr, 10);
  return bits == 8 || bits == 16 || bits == 32 || bits == 64 || bits == 128 ? bits / 8 : 0;
}

// The size and alignment of one `.param …` declaration.
bool read_parameter(const std::vector<std::string>& words, std::size_t& size, std::size_t& align) {
  size = align = 0;
  std::size_t count = 1;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == ".align" && i + 1 < words.size()) align = std::strtoul(words[i + 1].c_str(), nullptr, 10);
    if (words[i] == "[" && i + 1 < words.size()) count = std::strtoul(words[i + 1].c_str(), nullptr, 10);
    if (size == 0) size = size_of_type(words[i]);
  }
  align = std::max(align, size);
  size *= count;
  return size != 0;
}

}  // namespace

std::optional<std::vector<Kernel>> parse_ptx(std::string_view text) {
  const std::vector<std::string> tokens = tokens_of(without_comments(text));
  if (std::find(tokens.begin(), tokens.end(), ".version") == tokens.end()) return std::nullopt;
  std::vector<Kernel> kernels;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] != ".entry") continue;
    if (++i >= tokens.size() || !word_character(tokens[i][0])) return std::nullopt;
    Kernel kernel{tokens[i], {}};
    std::size_t offset = 0;
    if (i + 1 < tokens.size() && tokens[i + 1] == "(") {
      std::vector<std::string> words;
      for (i += 2;; ++i) {
        if (i >= tokens.size()) return std::nullopt;
        const bool last = tokens[i] == ")";
        if (!last && tokens[i] != ",") {
          words.push_back(tokens[i]);
          continue;
        }
        if (!words.empty()) {
          std::size_t size = 0;
          std::size_t align = 0;
          if (!read_parameter(words, size, align)) return std::nullopt;
          offset = (offset + align - 1) / align * align;
          kernel.parameters.push_back({offset, size});
          offset += size;
          words.clear();
        }
        if (last) break;
      }
    }
    kernels.push_back(std::move(kernel));
  }
  return kernels;
}

std::int64_t duration_ns(const Kernel& kernel, const Arguments& arguments, std::int64_t default_ns) {
  if (kernel.name != "spin_ns" || kernel.parameters.empty() || kernel.parameters[0].size != 8) {
    return default_ns;
  }
  std::uint64_t wanted = 0;
  if (arguments.each != nullptr) {
    std::memcpy(&wanted, arguments.each[0], sizeof(wanted));
  } else if (arguments.packed != nullptr && arguments.packed_size >= sizeof(wanted)) {
    std::memcpy(&wanted, arguments.packed, sizeof(wanted));
  }
  constexpr auto kLongest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max() / 4);
  return static_cast<std::int64_t>(std::min(wanted, kLongest));
}

// The finaliser of splitmix64: neighbouring numbers come out unrelated.
std::int64_t jitter_ns(std::uint64_t event, std::int64_t most_ns) {
  if (most_ns <= 0) return 0;
  std::uint64_t mixed = (event + 1) * 0x9e3779b97f4a7c15ull;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
  mixed ^= mixed >> 31;
  return static_cast<std::int64_t>(mixed % static_cast<std::uint64_t>(2 * most_ns + 1)) - most_ns;
}

}  // namespace sim
