/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "io/memory.h"

#include <linux/capability.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

void memory_serve_io(void)
{
	(void)prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

void memory_serve_no_io(void)
{
	(void)prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
}

static bool may_lock_any_amount(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
		return true;
	return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (UINT32_C(1) << CAP_IPC_LOCK)) != 0;
}

/* With a limit, a later allocation would fail for it: then no lock at all. */
void memory_lock(void)
{
	if (may_lock_any_amount())
		(void)mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
}
