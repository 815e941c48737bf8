/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fuzz targets share. A target takes any bytes for input and aborts where a property does not hold that is
 * stated at the head of its file; libFuzzer and the sanitizers see to the rest: memory, undefined behaviour, leaks,
 * time.
 *
 * A target starts each input from the same state, and nothing in it depends on time or on chance, so that an input
 * alone shows again what was found.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_check_at(bool ok, const char *text, const char *file, int line)
{
	if (ok)
		return;
	(void)fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, text);
	abort();
}

#define fuzz_check(text, condition) fuzz_check_at((condition), (text), __FILE__, __LINE__)

/* An input, taken piece by piece. Past its end come zeroes. */
struct fuzz_input {
	const uint8_t *at;
	size_t left;
};

static inline void fuzz_take(struct fuzz_input *input, void *out, size_t bytes)
{
	size_t here = bytes < input->left ? bytes : input->left;

	if (here > 0)
		memcpy(out, input->at, here);
	memset((uint8_t *)out + here, 0, bytes - here);
	input->at += here;
	input->left -= here;
}

static inline uint8_t fuzz_u8(struct fuzz_input *input)
{
	uint8_t value;

	fuzz_take(input, &value, sizeof(value));
	return value;
}

static inline uint16_t fuzz_u16(struct fuzz_input *input)
{
	uint16_t value;

	fuzz_take(input, &value, sizeof(value));
	return value;
}

static inline uint32_t fuzz_u32(struct fuzz_input *input)
{
	uint32_t value;

	fuzz_take(input, &value, sizeof(value));
	return value;
}

static inline uint64_t fuzz_u64(struct fuzz_input *input)
{
	uint64_t value;

	fuzz_take(input, &value, sizeof(value));
	return value;
}

/* The lowest descriptor that is free: it rises when one is leaked. */
static inline int fuzz_free_descriptor(void)
{
	int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);

	if (fd >= 0)
		(void)close(fd);
	return fd;
}

#endif
