// Weights as matmul.h reads them: sixteen rows side by side.
//
// Rows are cut into chunks of 64 and those into groups of 16 (the last ones filled up with rows of zeros); inputs into
// steps of 32. A chunk is one piece of memory, step after step, and within a step group after group:
//
//   bf16    [16 pairs of inputs][16 rows][2 inputs]
//   MXFP4   [4 quarters][16 rows] of 32 bits: the codes of inputs 0, 2, 4, 6, 1, 3, 5, 7 of the quarter, from the low
//           bits on; scales, apart, [16 rows]
#include <algorithm>

#include "abi.h"
#include "matmul.h"

namespace {

// place(first row, rows that exist of its sixteen, where the group begins and how far its steps are apart, in groups of
// one step) for every group of rows.
template <class Place>
void for_each_group(int64_t rows, int64_t steps, const Place& place) {
  shoal::parallel_for(chunks_of(rows), [&](int64_t chunk) {
    const int groups = groups_of(rows, chunk);
    for (int group = 0; group < groups; ++group) {
      const int64_t first = chunk * kChunk + group * kLanes;
      place(first, std::min<int64_t>(kLanes, rows - first), chunk * kGroups * steps + group, groups);
    }
  });
}

SHOAL_INLINE uint32_t every_other(uint32_t codes) {  // nibbles 0, 2, 4, 6 as the low 16 bits
  codes &= 0x0F0F0F0Fu;
  codes = (codes | codes >> 4) & 0x00FF00FFu;
  return (codes | codes >> 8) & 0xFFFFu;
}

}  // namespace

// weight bf16 [N,K] -> packed [N up to whole groups, K up to whole steps]
SHOAL_API const char* shoal_pack_dense(const uint16_t* weight, uint16_t* packed, int64_t N, int64_t K) {
  const int64_t steps = steps_of(K);
  for_each_group(N, steps, [&](int64_t first, int64_t rows, int64_t start, int groups) {
    for (int64_t step = 0; step < steps; ++step) {
      uint16_t* to = packed + (start + step * groups) * kStep * kLanes;
      const int64_t inputs = std::min<int64_t>(kStep, K - step * kStep);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        uint32_t pairs[kStep / 2] = {};
        if (lane < rows) std::memcpy(pairs, weight + (first + lane) * K + step * kStep, inputs * sizeof(uint16_t));
        for (int64_t pair = 0; pair < kStep / 2; ++pair)
          std::memcpy(to + (pair * kLanes + lane) * 2, pairs + pair, sizeof *pairs);
      }
    }
  });
  return nullptr;
}

// blocks u8 [E,N,G,16], scales u8 [E,N,G] as published -> codes [E, N up to whole groups, G, 16], scales alike
SHOAL_API const char* shoal_pack_mxfp4(const uint8_t* blocks, const uint8_t* scales, uint8_t* packed_codes,
                                       uint8_t* packed_scales, int64_t E, int64_t N, int64_t G) {
  const int64_t padded = (N + kLanes - 1) / kLanes * kLanes;
  for (int64_t e = 0; e < E; ++e)
    for_each_group(N, G, [&](int64_t first, int64_t rows, int64_t start, int groups) {
      for (int64_t step = 0; step < G; ++step) {
        const int64_t unit = e * padded / kLanes * G + start + step * groups;
        uint32_t words[4][kLanes] = {};  // by quarter and row
        for (int64_t lane = 0; lane < rows; ++lane) {
          const int64_t from = (e * N + first + lane) * G + step;
          uint32_t codes[4];
          std::memcpy(codes, blocks + from * 16, sizeof codes);
          for (int quarter = 0; quarter < 4; ++quarter) words[quarter][lane] = codes[quarter];
          packed_scales[unit * kLanes + lane] = scales[from];
        }
        for (auto& row : words)
          for (uint32_t& codes : row) codes = every_other(codes) | every_other(codes >> 4) << 16;
        for (int64_t lane = rows; lane < kLanes; ++lane) packed_scales[unit * kLanes + lane] = 0;
        std::memcpy(packed_codes + unit * 4 * 64, words, sizeof words);
      }
    });
  return nullptr;
}
