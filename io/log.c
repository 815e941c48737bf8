/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages to the administrator. Each is made in a buffer of fixed size and leaves in one write(2), so that lines of
 * several processes on one terminal or pipe do not mix. A stderr that fails is nobody's error: there is no place left
 * to report it.
 */
#include "io/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/text.h"

#define LINE_BYTES_MAX 1024u

static bool silenced;

void log_silence(void)
{
	silenced = true;
}

__attribute__((format(printf, 2, 0))) static void log_line(const char *prefix, const char *format, va_list arguments)
{
	const int saved_errno = errno;
	char line[LINE_BYTES_MAX];
	size_t used, room;
	int wanted;

	if (silenced)
		return;
	used = strlen(prefix);
	memcpy(line, prefix, used);
	room = sizeof(line) - used; /* the byte that vsnprintf() needs for its NUL becomes the newline */
	wanted = vsnprintf(line + used, room, format, arguments);
	if (wanted > 0) {
		const size_t length = (size_t)wanted < room ? (size_t)wanted : room - 1;

		text_make_harmless(line + used, length);
		used += length;
	}
	line[used++] = '\n';
	while (write(STDERR_FILENO, line, used) < 0 && errno == EINTR)
		;
	errno = saved_errno;
}

void log_notice(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_line("rowsnap: ", format, arguments);
	va_end(arguments);
}

void log_warning(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_line("rowsnap: warning: ", format, arguments);
	va_end(arguments);
}
