/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See trouble.h. */
#include "core/trouble.h"

#include <stdarg.h>
#include <stdio.h>

#include "io/disk.h"
#include "io/log.h"

#define LINE_BYTES 512u

void trouble_tell(struct trouble *trouble, struct disk_host *host, const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;

	if (trouble->lines == TROUBLE_LINES) {
		trouble->left_out++;
		return;
	}
	if (trouble->lines++ == 0)
		trouble->since_ns = disk_host_monotonic_ns(host);
	va_start(arguments, format);
	(void)vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	log_warning("%s", line);
	if (trouble->lines == TROUBLE_LINES)
		log_warning("more of this kind is only counted, for %u s", (unsigned)(TROUBLE_NS / 1000000000u));
}

void trouble_end(struct trouble *trouble, const char *what, const char *path)
{
	if (trouble->left_out > 0)
		log_warning("%s %s: %llu more of the failures told before", what, path,
			    (unsigned long long)trouble->left_out);
	*trouble = (struct trouble){ 0 };
}

void trouble_tick(struct trouble *trouble, struct disk_host *host, const char *what, const char *path)
{
	if (trouble->lines > 0 && disk_host_monotonic_ns(host) - trouble->since_ns >= TROUBLE_NS)
		trouble_end(trouble, what, path);
}
