// The numbers of Winograd's F(4, 3) with the points 0, +-a, +-b and infinity, of which everything else follows:
//
//     y = A^T [ (G g) . (B^T d) ],    d: 6 inputs, g: 3 weights, y: 4 outputs
//
// m(x) = x (x^2 - a^2) (x^2 - b^2). A row of B^T holds the coefficients of m(x) / (x - p), that of infinity those of m(x); a row
// of G is (1, p, p^2) / m'(p), that of infinity (0, 0, 1); a column of A^T is (1, p, p^2, p^3), that of infinity (0, 0, 0, 1).
#pragma once

namespace fastcond::cpu::winograd {

constexpr int outputs = 4;              // a tile's outputs, one way
constexpr int inputs = 6;               // a tile's inputs, one way
constexpr int products = inputs * inputs;

constexpr double a = 0.75, b = 1.5;
constexpr double a2 = a * a, b2 = b * b;

constexpr double of_zero = a2 * b2;                // m'(0)
constexpr double of_a = 2 * a2 * (a2 - b2);        // m'(+-a)
constexpr double of_b = 2 * b2 * (b2 - a2);        // m'(+-b)

constexpr double G[inputs][3] = {
    {1 / of_zero, 0, 0},
    {1 / of_a, a / of_a, a2 / of_a},
    {1 / of_a, -a / of_a, a2 / of_a},
    {1 / of_b, b / of_b, b2 / of_b},
    {1 / of_b, -b / of_b, b2 / of_b},
    {0, 0, 1},
};

}  // namespace fastcond::cpu::winograd
