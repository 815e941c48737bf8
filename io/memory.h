/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory for a server that the kernel itself may wait for: to get memory free, it writes pages out through our own
 * exports. If we had to wait for memory then, both would wait for ever.
 */
#ifndef IO_MEMORY_H
#define IO_MEMORY_H

/*
 * Tells the kernel that this process serves block I/O, so that its own allocations never wait for I/O. Before threads
 * are started: they inherit it. Needs CAP_SYS_RESOURCE; without it nothing changes.
 */
void memory_serve_io(void);

/* For a child that serves nothing: it would inherit that, its programs too. */
void memory_serve_no_io(void);

/* Keeps in memory what is touched from now on, and what was before, where that is permitted. */
void memory_lock(void);

#endif
