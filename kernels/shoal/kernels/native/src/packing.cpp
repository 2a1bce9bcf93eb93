// Weights as matmul.h reads them: sixteen rows side by side.
//
// Rows are cut into chunks of 64 and those into groups of 16 (the last ones filled up with rows of zeros); inputs into
// steps of 32. A chunk is one piece of memory, step after step, and within a step group after group:
//
//   bf16    [16 pairs of inputs][16 rows][2 inputs]
//   MXFP4   [4 quarters][16 rows] of 32 bits: the codes of inputs 0, 2, 4, 6, 1, 3, 5, 7 of the quarter, from the low
//           bits on; scales, apart, [16 rows]
#include "abi.h"
#include "matmul.h"

namespace {

// place(row, offset in groups) for every row of every group in the order of memory; rows beyond `rows` are -1.
template <class Place>
void for_each_row(int64_t rows, const Place& place) {
  shoal::parallel_for(chunks_of(rows), [&](int64_t chunk) {
    const int groups = groups_of(rows, chunk);
    for (int lane = 0; lane < groups * kLanes; ++lane) {
      const int64_t row = chunk * kChunk + lane;
      place(row < rows ? row : -1, chunk, groups, lane / kLanes, lane % kLanes);
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
  for_each_row(N, [&](int64_t row, int64_t chunk, int groups, int group, int lane) {
    for (int64_t step = 0; step < steps; ++step) {
      uint16_t* to = packed + (chunk * kGroups * steps + step * groups + group) * kStep * kLanes + 2 * lane;
      for (int64_t k = 0; k < kStep; ++k) {
        const int64_t input = step * kStep + k;
        to[k / 2 * 2 * kLanes + k % 2] = row >= 0 && input < K ? weight[row * K + input] : 0;
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
    for_each_row(N, [&](int64_t row, int64_t chunk, int groups, int group, int lane) {
      for (int64_t step = 0; step < G; ++step) {
        const int64_t unit = e * padded / kLanes * G + chunk * kGroups * G + step * groups + group;
        packed_scales[unit * kLanes + lane] = row >= 0 ? scales[(e * N + row) * G + step] : 0;
        for (int quarter = 0; quarter < 4; ++quarter) {
          uint32_t codes = 0;
          if (row >= 0) std::memcpy(&codes, blocks + ((e * N + row) * G + step) * 16 + quarter * 4, sizeof codes);
          codes = every_other(codes) | every_other(codes >> 4) << 16;
          std::memcpy(packed_codes + (unit * 4 + quarter) * 64 + lane * 4, &codes, sizeof codes);
        }
      }
    });
  return nullptr;
}
