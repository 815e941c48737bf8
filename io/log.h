/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages to the administrator on stderr, a line each, from any layer; control characters in them are made harmless. */
#ifndef IO_LOG_H
#define IO_LOG_H

/* "rowsnap: <text>\n". Never fails; at most 1 KiB. */
__attribute__((format(printf, 1, 2))) void log_notice(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_warning(const char *format, ...);

/* No message leaves any more: for a tool that tells all there is to tell itself, in one line. */
void log_silence(void);

#endif
