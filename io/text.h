/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Text from outside (labels, process names, lines from a socket): whether it is well-formed UTF-8, and how to show it
 * without letting it steer a terminal.
 */
#ifndef IO_TEXT_H
#define IO_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/*
 * The length in bytes (1 to 4) of the UTF-8 character that `text` starts with; 0 when its first bytes are none: stray
 * continuation bytes, overlong forms, surrogates, beyond U+10FFFF, cut off at `bytes`.
 */
static inline size_t text_character_bytes(const char *text, size_t bytes)
{
	unsigned char first, second;
	size_t length;

	if (bytes == 0)
		return 0;
	first = (unsigned char)text[0];
	if (first < 0x80)
		return 1;
	if (first < 0xc2 || first > 0xf4)
		return 0;
	length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
	if (length > bytes)
		return 0;
	for (size_t i = 1; i < length; i++) {
		if (((unsigned char)text[i] & 0xc0) != 0x80)
			return 0;
	}
	second = (unsigned char)text[1];
	if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0) || (first == 0xf0 && second < 0x90) ||
	    (first == 0xf4 && second >= 0x90))
		return 0;
	return length;
}

static inline bool text_is_utf8(const char *text, size_t bytes)
{
	size_t at = 0;

	while (at < bytes) {
		size_t length = text_character_bytes(text + at, bytes - at);

		if (length == 0)
			return false;
		at += length;
	}
	return true;
}

/* Puts '?' for every byte of a control character (C0, DEL, C1) and for every byte that is not UTF-8. */
static inline void text_make_harmless(char *text, size_t bytes)
{
	size_t at = 0;

	while (at < bytes) {
		size_t length = text_character_bytes(text + at, bytes - at);
		unsigned char first = (unsigned char)text[at];

		if (length == 0 || (length == 1 && (first < 0x20 || first == 0x7f))) {
			text[at] = '?';
			length = 1;
		} else if (length == 2 && first == 0xc2 && (unsigned char)text[at + 1] < 0xa0) {
			text[at] = '?';
			text[at + 1] = '?';
		}
		at += length;
	}
}

#endif
