# SPDX-License-Identifier: GPL-2.0-or-later
"""
XXH3, 64 bits, with a seed, as the xxHash project's specification describes it. Not a test by itself (no #! line).

Written for tests that must not trust the library the product uses. What is long is not hashed number by number:
between two scrambles the accumulators only add up, so each lane is one sum over every eighth number.
"""
import functools
import operator
import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
MASK = (1 << 64) - 1
PRIME32_1, PRIME32_2, PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIME64_1, PRIME64_2, PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
PRIME64_4, PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
PRIME_MX1, PRIME_MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25

STRIPE_BYTES = 64
STRIPES_PER_ROUND = (len(SECRET) - STRIPE_BYTES) // 8
ROUND_BYTES = STRIPES_PER_ROUND * STRIPE_BYTES


def _u32(data, offset):
    return int.from_bytes(data[offset:offset + 4], "little")


def _u64(data, offset):
    return int.from_bytes(data[offset:offset + 8], "little")


def _swap(number, length):
    return int.from_bytes(number.to_bytes(length, "little"), "big")


def _rotate(number, count):
    return (number << count | number >> (64 - count)) & MASK


def _fold(a, b):
    product = a * b
    return product & MASK ^ product >> 64


def _avalanche(number):
    number = (number ^ number >> 37) * PRIME_MX1 & MASK
    return number ^ number >> 32


def _avalanche_xxh64(number):
    number = (number ^ number >> 33) * PRIME64_2 & MASK
    number = (number ^ number >> 29) * PRIME64_3 & MASK
    return number ^ number >> 32


def _hash_to_3(data, seed):
    size = len(data)
    if size == 0:
        return _avalanche_xxh64(seed ^ _u64(SECRET, 56) ^ _u64(SECRET, 64))
    combined = data[-1] | size << 8 | data[0] << 16 | data[size >> 1] << 24
    return _avalanche_xxh64((_u32(SECRET, 0) ^ _u32(SECRET, 4)) + seed & MASK ^ combined)


def _hash_4_to_8(data, seed):
    seed ^= _swap(seed & 0xffffffff, 4) << 32
    combined = _u32(data, len(data) - 4) | _u32(data, 0) << 32
    value = (_u64(SECRET, 8) ^ _u64(SECRET, 16)) - seed & MASK ^ combined
    value ^= _rotate(value, 49) ^ _rotate(value, 24)
    value = value * PRIME_MX2 & MASK
    value = (value ^ (value >> 35) + len(data)) * PRIME_MX2 & MASK
    return value ^ value >> 28


def _hash_9_to_16(data, seed):
    low = (_u64(SECRET, 24) ^ _u64(SECRET, 32)) + seed & MASK ^ _u64(data, 0)
    high = (_u64(SECRET, 40) ^ _u64(SECRET, 48)) - seed & MASK ^ _u64(data, len(data) - 8)
    return _avalanche(len(data) + _swap(low, 8) + high + _fold(low, high) & MASK)


def _mix(data, offset, secret_offset, seed):
    return _fold(_u64(data, offset) ^ _u64(SECRET, secret_offset) + seed & MASK,
                 _u64(data, offset + 8) ^ _u64(SECRET, secret_offset + 8) - seed & MASK)


def _hash_17_to_128(data, seed):
    total = len(data) * PRIME64_1
    for i in range((len(data) - 1 >> 5) + 1):
        total += _mix(data, i * 16, i * 32, seed) + _mix(data, len(data) - i * 16 - 16, i * 32 + 16, seed)
    return _avalanche(total & MASK)


def _hash_129_to_240(data, seed):
    total = len(data) * PRIME64_1 + sum(_mix(data, i * 16, i * 16, seed) for i in range(8))
    total = _avalanche(total & MASK)
    total += sum(_mix(data, i * 16, (i - 8) * 16 + 3, seed) for i in range(8, len(data) >> 4))
    return _avalanche(total + _mix(data, len(data) - 16, 119, seed) & MASK)


def _add_stripes(lanes, data, key):
    """Adds whole stripes to the eight lanes. The key is as long as data: each stripe's piece of the secret."""
    keyed = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
    halves = struct.unpack(f"<{len(data) // 4}I", keyed.to_bytes(len(data), "little"))
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    for i in range(8):
        products = map(operator.mul, halves[2 * i::16], halves[2 * i + 1::16])
        lanes[i] = lanes[i] + sum(products) + sum(words[i ^ 1::8]) & MASK


@functools.lru_cache
def _seeded(seed):
    """The secret that the seed makes, and the pieces of it that a whole round uses, one after the other."""
    words = struct.unpack("<24Q", SECRET)
    secret = struct.pack("<24Q", *((word + (-seed if i & 1 else seed)) & MASK for i, word in enumerate(words)))
    return secret, b"".join(secret[8 * n:8 * n + STRIPE_BYTES] for n in range(STRIPES_PER_ROUND))


def _hash_long(data, seed):
    secret, key = _seeded(seed)
    scramble = struct.unpack("<8Q", secret[-STRIPE_BYTES:])
    lanes = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1]
    last = (len(data) - 1) // ROUND_BYTES * ROUND_BYTES
    for offset in range(0, last, ROUND_BYTES):
        _add_stripes(lanes, data[offset:offset + ROUND_BYTES], key)
        lanes = [(lane ^ lane >> 47 ^ word) * PRIME32_1 & MASK for lane, word in zip(lanes, scramble)]
    whole = (len(data) - last - 1) // STRIPE_BYTES * STRIPE_BYTES
    _add_stripes(lanes, data[last:last + whole], key[:whole])
    _add_stripes(lanes, data[-STRIPE_BYTES:], secret[-STRIPE_BYTES - 7:-7])
    words = struct.unpack("<8Q", secret[11:11 + STRIPE_BYTES])
    total = len(data) * PRIME64_1
    total += sum(_fold(lanes[i] ^ words[i], lanes[i + 1] ^ words[i + 1]) for i in range(0, 8, 2))
    return _avalanche(total & MASK)


def xxh3_64(data, seed=0):
    """The hash of bytes, as a number."""
    data = bytes(data)
    for size_max, function in ((3, _hash_to_3), (8, _hash_4_to_8), (16, _hash_9_to_16), (128, _hash_17_to_128),
                               (240, _hash_129_to_240)):
        if len(data) <= size_max:
            return function(data, seed)
    return _hash_long(data, seed)
