// SPDX-License-Identifier: Apache-2.0
//
// Runs a fuzz target on the files named, where no fuzzer is linked.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz.h"

int main(int count, char** paths) {
    for (int index = 1; index < count; ++index) {
        std::ifstream file(paths[index], std::ios::binary);
        const std::string input(std::istreambuf_iterator<char>(file), {});
        std::printf("%s\n", paths[index]);
        std::fflush(stdout); // the last line names what crashed
        (void)LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
    }
    return 0;
}
