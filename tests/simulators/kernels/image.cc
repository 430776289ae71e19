// SPDX-License-Identifier: GPL-3.0-or-later
#include "image.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace sim {
namespace {

constexpr std::uint32_t kElfMark = 0x464c457f;
constexpr std::uint32_t kFatbinMark = 0xba55ed50;
constexpr std::uint32_t kWrapperMark = 0x466243b1;

// --- ELF -----------------------------------------------------------------------------------------

constexpr std::uint16_t kCudaMachine = 190;
constexpr std::size_t kElfHeader = 64;
constexpr std::size_t kSectionHeader = 64;
constexpr std::size_t kSymbol = 24;
constexpr std::uint32_t kSymbolTable = 2;
constexpr unsigned char kFunction = 2;     // type of a symbol
constexpr unsigned char kEntry = 0x10;     // in its `other`: a kernel, not a function of kernels
constexpr unsigned char kSized = 4;        // format of an attribute: its value is a payload's length
constexpr unsigned char kParameter = 0x17;  // attribute: one parameter's number, offset and size

// A number in a file; nothing when it lies outside.
template <class Number>
std::optional<Number> at(std::string_view file, std::size_t offset) {
  if (offset > file.size() || sizeof(Number) > file.size() - offset) return std::nullopt;
  Number number;
  std::memcpy(&number, file.data() + offset, sizeof(number));
  return number;
}

struct Section {
  std::string name;
  std::uint32_t type;
  std::uint32_t link;
  std::string_view content;
};

std::string text_at(std::string_view table, std::size_t offset) {
  if (offset >= table.size()) return "";
  const std::string_view rest = table.substr(offset);
  return std::string(rest.substr(0, rest.find('\0')));
}

std::optional<std::string_view> part(std::string_view file, std::uint64_t offset, std::uint64_t size) {
  if (offset > file.size() || size > file.size() - offset) return std::nullopt;
  return file.substr(offset, size);
}

// Sections with their contents; those without any in the file are empty.
std::optional<std::vector<Section>> sections_of(std::string_view file) {
  const auto table = at<std::uint64_t>(file, 40);
  const auto count = at<std::uint16_t>(file, 60);
  const auto names_in = at<std::uint16_t>(file, 62);
  if (!table || !count || !names_in || *names_in >= *count) return std::nullopt;
  if (!part(file, *table, *count * kSectionHeader)) return std::nullopt;
  std::vector<Section> sections;
  std::vector<std::uint32_t> names;
  for (std::size_t i = 0; i < *count; ++i) {
    const std::size_t header = *table + i * kSectionHeader;
    const auto type = *at<std::uint32_t>(file, header + 4);
    constexpr std::uint32_t kNoContent = 8;
    const auto content = type == kNoContent ? std::string_view{}
                                            : part(file, *at<std::uint64_t>(file, header + 24), *at<std::uint64_t>(file, header + 32));
    if (!content) return std::nullopt;
    names.push_back(*at<std::uint32_t>(file, header));
    sections.push_back({"", type, *at<std::uint32_t>(file, header + 40), *content});
  }
  for (std::size_t i = 0; i < sections.size(); ++i) sections[i].name = text_at(sections[*names_in].content, names[i]);
  return sections;
}

// Attributes of four bytes (format, number, value), and a payload where the format says so.
std::optional<std::vector<Parameter>> parameters_in(std::string_view info) {
  std::map<std::uint16_t, Parameter> by_number;
  for (std::size_t i = 0; i < info.size();) {
    const auto format = at<std::uint8_t>(info, i);
    const auto number = at<std::uint8_t>(info, i + 1);
    const auto value = at<std::uint16_t>(info, i + 2);
    if (!value) return std::nullopt;
    if (*format == kSized && *number == kParameter) {
      const auto ordinal = at<std::uint16_t>(info, i + 8);
      const auto offset = at<std::uint16_t>(info, i + 10);
      const auto shape = at<std::uint32_t>(info, i + 12);
      if (!shape) return std::nullopt;
      by_number[*ordinal] = {*offset, *shape >> 18};
    }
    i += 4 + (*format == kSized ? *value : 0u);
  }
  std::vector<Parameter> parameters;
  for (const auto& [number, parameter] : by_number) parameters.push_back(parameter);
  return parameters;
}

std::vector<std::string> entries_of(const std::vector<Section>& sections) {
  std::vector<std::string> entries;
  for (const Section& section : sections) {
    if (section.type != kSymbolTable || section.link >= sections.size()) continue;
    for (std::size_t i = 0; i + kSymbol <= section.content.size(); i += kSymbol) {
      const auto info = *at<std::uint8_t>(section.content, i + 4);
      const auto other = *at<std::uint8_t>(section.content, i + 5);
      if ((info & 0xf) != kFunction || (other & kEntry) == 0) continue;
      entries.push_back(text_at(sections[section.link].content, *at<std::uint32_t>(section.content, i)));
    }
  }
  return entries;
}

// The newest files keep the capability in another byte than all before.
int capability_of(std::string_view file) {
  const auto abi = at<std::uint8_t>(file, 8);
  const auto flags = at<std::uint32_t>(file, 48);
  if (!flags) return 0;
  return static_cast<int>((*abi >= 8 ? *flags >> 8 : *flags) & 0xff);
}

bool runs(int code, int card) { return code / 10 == card / 10 && code <= card; }

// --- fatbin --------------------------------------------------------------------------------------

constexpr std::uint16_t kPtxKind = 1;
constexpr std::uint16_t kElfKind = 2;
constexpr std::uint64_t kLz4 = 0x2000;
constexpr std::uint64_t kZstd = 0x8000;

struct Entry {
  std::uint16_t kind;
  std::uint32_t capability;
  std::uint64_t flags;
  std::uint64_t unpacked;
  std::string_view content;
};

std::optional<std::vector<Entry>> fatbin_entries(std::string_view file) {
  const auto header = at<std::uint16_t>(file, 6);
  if (!at<std::uint64_t>(file, 8) || *header < 16) return std::nullopt;
  std::vector<Entry> entries;
  for (std::size_t i = *header; i < file.size();) {
    const auto own = at<std::uint32_t>(file, i + 4);
    const auto size = at<std::uint64_t>(file, i + 8);
    const auto unpacked = at<std::uint64_t>(file, i + 56);
    if (!unpacked || *own < 64) return std::nullopt;
    const auto content = part(file, i + *own, *size);
    if (!content) return std::nullopt;
    const auto packed = *at<std::uint32_t>(file, i + 16);
    entries.push_back({*at<std::uint16_t>(file, i), *at<std::uint32_t>(file, i + 28), *at<std::uint64_t>(file, i + 40),
                       *unpacked, content->substr(0, packed != 0 ? packed : content->size())});
    i += *own + *size;
  }
  return entries;
}

// What the driver would take: the nearest machine code that runs, else the nearest PTX.
const Entry* best_entry(const std::vector<Entry>& entries, int card) {
  const Entry* best = nullptr;
  for (const Entry& entry : entries) {
    const auto code = static_cast<int>(entry.capability);
    const bool elf = entry.kind == kElfKind;
    if (elf ? !runs(code, card) : entry.kind != kPtxKind || code > card) continue;
    const bool better = best == nullptr || (elf && best->kind != kElfKind) ||
                        (entry.kind == best->kind && entry.capability > best->capability);
    if (better) best = &entry;
  }
  return best;
}

std::optional<std::string> content_of(const Entry& entry, const Unzstd& unzstd) {
  if ((entry.flags & kLz4) != 0) return unpack_lz4(entry.content, entry.unpacked);
  if ((entry.flags & kZstd) == 0) return std::string(entry.content);
  return unzstd ? unzstd(entry.content, entry.unpacked) : std::nullopt;
}

Image failed(ImageError error) { return {error, {}}; }

Image read_ptx(std::string_view text) {
  auto kernels = parse_ptx(text.substr(0, text.find('\0')));
  if (!kernels) return failed(ImageError::kNotPtx);
  return {ImageError::kNone, std::move(*kernels)};
}

}  // namespace

// A sequence: how many literals and how long a match (four bits each, 15: more bytes follow), the literals, the
// match's distance. The last one ends after its literals.
std::optional<std::string> unpack_lz4(std::string_view packed, std::size_t bytes) {
  constexpr std::size_t kMost = std::size_t{1} << 30;
  if (bytes > kMost) return std::nullopt;
  std::string out;
  out.reserve(bytes);
  std::size_t i = 0;
  const auto longer = [&](std::size_t length) -> std::optional<std::size_t> {
    if (length != 15) return length;
    while (true) {
      const auto more = at<std::uint8_t>(packed, i++);
      if (!more) return std::nullopt;
      length += *more;
      if (*more != 255) return length;
    }
  };
  while (i < packed.size()) {
    const auto token = *at<std::uint8_t>(packed, i++);
    const auto literals = longer(token >> 4);
    if (!literals || *literals > packed.size() - std::min(i, packed.size())) return std::nullopt;
    out.append(packed.substr(i, *literals));
    i += *literals;
    if (i == packed.size()) break;
    const auto distance = at<std::uint16_t>(packed, i);
    i += 2;
    const auto match = longer(token & 15);
    if (!distance || *distance == 0 || *distance > out.size() || !match || *match + 4 > bytes - std::min(bytes, out.size())) {
      return std::nullopt;
    }
    // Byte by byte: a match may reach into what it writes.
    for (std::size_t k = 0; k < *match + 4; ++k) out.push_back(out[out.size() - *distance]);
  }
  if (out.size() != bytes) return std::nullopt;
  return out;
}

Image read_cubin(std::string_view file, int capability) {
  if (at<std::uint32_t>(file, 0) != kElfMark || at<std::uint16_t>(file, 18) != kCudaMachine) {
    return failed(ImageError::kMalformed);
  }
  if (!runs(capability_of(file), capability)) return failed(ImageError::kNotForThisCard);
  const auto sections = sections_of(file);
  if (!sections) return failed(ImageError::kMalformed);
  Image image;
  for (const std::string& entry : entries_of(*sections)) {
    Kernel kernel{entry, {}};
    for (const Section& section : *sections) {
      if (section.name != ".nv.info." + entry) continue;
      auto parameters = parameters_in(section.content);
      if (!parameters) return failed(ImageError::kMalformed);
      kernel.parameters = std::move(*parameters);
    }
    image.kernels.push_back(std::move(kernel));
  }
  return image;
}

Image read_fatbin(std::string_view file, int capability, const Unzstd& unzstd) {
  if (at<std::uint32_t>(file, 0) != kFatbinMark) return failed(ImageError::kMalformed);
  const auto entries = fatbin_entries(file);
  if (!entries) return failed(ImageError::kMalformed);
  const Entry* entry = best_entry(*entries, capability);
  if (entry == nullptr) return failed(ImageError::kNotForThisCard);
  const auto content = content_of(*entry, unzstd);
  if (!content) return failed((entry->flags & kZstd) != 0 && !unzstd ? ImageError::kPacked : ImageError::kMalformed);
  return entry->kind == kElfKind ? read_cubin(*content, capability) : read_ptx(*content);
}

// Section headers lie at the end of a cubin, or the program headers behind them.
std::size_t length_of(const void* image) {
  std::uint32_t mark = 0;
  std::memcpy(&mark, image, sizeof(mark));
  const std::string_view head(static_cast<const char*>(image), mark == kFatbinMark ? 16 : kElfHeader);
  if (mark == kFatbinMark) return *at<std::uint16_t>(head, 6) + *at<std::uint64_t>(head, 8);
  if (mark != kElfMark) return 0;
  const std::uint64_t sections = *at<std::uint64_t>(head, 40) + *at<std::uint16_t>(head, 58) * *at<std::uint16_t>(head, 60);
  const std::uint64_t segments = *at<std::uint64_t>(head, 32) + *at<std::uint16_t>(head, 54) * *at<std::uint16_t>(head, 56);
  return std::max({sections, segments, std::uint64_t{kElfHeader}});
}

Image read_image(const void* image, int capability, const Unzstd& unzstd) {
  const auto* bytes = static_cast<const char*>(image);
  if (strnlen(bytes, sizeof(std::uint32_t)) < sizeof(std::uint32_t)) return failed(ImageError::kNotPtx);
  std::uint32_t mark = 0;
  std::memcpy(&mark, bytes, sizeof(mark));
  if (mark == kWrapperMark) {
    const void* inner = nullptr;
    std::memcpy(&inner, bytes + 8, sizeof(inner));
    return inner != nullptr ? read_image(inner, capability, unzstd) : failed(ImageError::kMalformed);
  }
  if (mark == kFatbinMark) return read_fatbin({bytes, length_of(image)}, capability, unzstd);
  if (mark == kElfMark) return read_cubin({bytes, length_of(image)}, capability);
  return read_ptx(bytes);
}

}  // namespace sim
