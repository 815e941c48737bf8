# SPDX-License-Identifier: GPL-2.0-or-later
#
# `make help` lists what there is to make. Everything made lies under build/, but for ./rowsnap and ./rowsnap.static.
#
#   CC=clang                      another compiler
#   CFLAGS= CPPFLAGS= LDFLAGS=    added to ours, after them
#   WERROR=1                      warnings are errors (CI sets it)
#   SANITIZE=address,undefined    an instrumented build, in a folder of its own
#   BUILD=build/other             where to build; ./rowsnap is made by the usual build only
#   FUZZ_SECONDS=600 TARGET=nbd   `make fuzz`: how long for each target, and which (all)
#   V=1                           whole command lines

BUILD = build$(if $(SANITIZE),/$(subst $(comma),-,$(SANITIZE)))
PREFIX = /usr/local
DESTDIR =
TESTS =
comma := ,

MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

# Quiet unless V=1: $(Q) hides a command, $(call say,WHAT,FILE) prints a line for it instead.
Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-8s %s\n' '$(1)' '$(2)')

# Sub-makes that build a lot use all cores, unless -j was given.
parallel = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

## Flags

WARNINGS = -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wvla -Wstrict-prototypes -Wmissing-prototypes \
	-Wformat=2 -Wundef -Wpointer-arith -Wcast-align -Wcast-qual -Wwrite-strings -Wnull-dereference \
	-Wdouble-promotion -Wimplicit-fallthrough -Wswitch-enum $(if $(WERROR),-Werror)

# _FORTIFY_SOURCE needs optimisation, and sanitizers do its work better.
FORTIFY = $(if $(SANITIZE)$(filter -O0,$(CFLAGS)),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
HARDENING = -fPIE -fstack-protector-strong -fstack-clash-protection
HARDENING_LINK = -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack
INSTRUMENT = $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer) \
	$(if $(FUZZER),-fsanitize=fuzzer-no-link)
# gcc's shared libubsan, beside libasan, takes no notice of the log_path that tests/run gives it.
INSTRUMENT_LINK = $(if $(SANITIZE),-fsanitize=$(SANITIZE)) \
	$(if $(findstring clang,$(CC)),,$(if $(findstring undefined,$(SANITIZE)),-static-libubsan))

# What every tool that reads the sources must know. No -DNDEBUG: assertions stay on in every build.
LANGUAGE = -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I.

COMPILE = $(CC) $(LANGUAGE) -O2 -g -pthread $(WARNINGS) $(FORTIFY) $(HARDENING) $(INSTRUMENT) $(CPPFLAGS) $(CFLAGS)
LINK = $(CC) -pthread $(HARDENING_LINK) $(INSTRUMENT_LINK) $(CFLAGS) $(LDFLAGS)
LIBRARIES = -laio -lblkid -luuid -lfuse3 -ljson-c -lxxhash

## Files

LIBRARY_SOURCES := $(sort $(wildcard core/*.c io/*.c format/*.c))
PROGRAM_SOURCES := $(sort $(wildcard rowsnap.c cmd/*.c))
UNIT_SOURCES := $(sort $(wildcard tests/unit/*.c))
SIM_SOURCES := $(sort $(wildcard tests/sim/*.c))
FUZZ_SOURCES := $(sort $(wildcard tests/fuzz/fuzz-*.c))
FAKE_SOURCES := $(sort $(wildcard tests/fake/*-preload.c))
PRODUCT_SOURCES := $(PROGRAM_SOURCES) $(LIBRARY_SOURCES)
SOURCES := $(PRODUCT_SOURCES) $(UNIT_SOURCES) $(SIM_SOURCES) $(FUZZ_SOURCES)
SCRIPTS = .ci/run tests/install-tools tests/quickstart tests/vm/uml-run $(wildcard tests/*.bash) cmd/rowsnap.bash-completion \
	$(sort $(wildcard tests/*.bats))

objects = $(1:%.c=$(BUILD)/obj/%.o)

PROGRAM = $(BUILD)/rowsnap
ARCHIVE = $(BUILD)/rowsnap.a
UNIT_PROGRAMS = $(UNIT_SOURCES:tests/unit/%.c=$(BUILD)/tests/%)
SIM_PROGRAM = $(if $(SIM_SOURCES),$(BUILD)/tests/sim)
FAKES = $(FAKE_SOURCES:tests/fake/%.c=$(BUILD)/tests/%.so)

## What people ask for

.PHONY: all static install uninstall clean help objects tests check sim sweep coverage bench quickstart FORCE
.PHONY: fuzz fuzzers fuzz-programs
.PHONY: analyze analyze-gcc analyze-tidy analyze-cppcheck analyze-scan analyze-scripts

all: $(PROGRAM)
ifeq ($(BUILD),build)
all: rowsnap
endif

help:
	@echo 'make                 ./rowsnap'
	@echo 'make static          ./rowsnap.static, which needs no shared library'
	@echo 'make quickstart      installs what the build needs, builds, and shows what rowsnap does'
	@echo 'make check           all tests, plain and under sanitizers; TESTS="drop* test-map" picks some'
	@echo 'make sim             the simulator: SEEDS=1-1000, MINUTES=480 or SCHEDULES=all; JOBS=2; MUTATION=NAME'
	@echo 'make coverage        how much of core/ and format/ the simulator and the tests reach'
	@echo 'make sweep           the fault and power-cut tests at every call and every flush: an hour, and two cores'
	@echo 'make fuzz            long fuzzing, of all targets or of TARGET=nbd, FUZZ_SECONDS=600 each'
	@echo 'make analyze         gcc -fanalyzer, clang-tidy, cppcheck, scan-build, shellcheck'
	@echo 'make bench           speed, next to that of others: some minutes; BENCH=--quick, BENCH=--help'
	@echo 'make install         to $$(DESTDIR)$$(PREFIX), by default /usr/local; make uninstall undoes it'
	@echo 'make clean           removes what was made'
	@echo
	@echo 'Variables: CC CFLAGS CPPFLAGS LDFLAGS WERROR=1 SANITIZE=address,undefined BUILD=DIR V=1'

static: $(BUILD)/rowsnap.static
	$(Q)cp $< rowsnap.static
	@echo 'rowsnap.static is ready: it needs no shared library.'

# A copy, put in place at once: the old one may be running.
rowsnap: $(PROGRAM)
	$(Q)cp $< $@.new && mv $@.new $@

## Building

# A stamp file changes when the text in it does, so a change of flags or of the set of files rebuilds what it should.
define stamp
$(1): export STAMP = $(2)
$(1): FORCE
	@mkdir -p $$(@D)
	@printf '%s\n' "$$$$STAMP" | cmp -s - $$@ || printf '%s\n' "$$$$STAMP" >$$@
endef
$(eval $(call stamp,$(BUILD)/compile,$$(COMPILE)))
$(eval $(call stamp,$(BUILD)/link,$$(LINK) $$(LIBRARIES) $$(SOURCES)))

$(BUILD)/obj/%.o: %.c Makefile $(BUILD)/compile
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -MMD -MP -c -o $@ $<

-include $(patsubst %.o,%.d,$(call objects,$(SOURCES)))

objects: $(call objects,$(PRODUCT_SOURCES))

$(ARCHIVE): $(call objects,$(LIBRARY_SOURCES)) $(BUILD)/link
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar qcs $@ $(filter %.o,$^)

$(PROGRAM): $(call objects,$(PROGRAM_SOURCES)) $(ARCHIVE) $(BUILD)/link
	$(call say,LINK,$@)
	$(Q)$(LINK) -pie -o $@ $(filter %.o %.a,$^) $(LIBRARIES)

$(BUILD)/rowsnap.static: $(call objects,$(PROGRAM_SOURCES)) $(ARCHIVE) $(BUILD)/link
	$(call say,LINK,$@)
	$(Q)$(LINK) -static-pie -o $@ $(filter %.o %.a,$^) $(LIBRARIES)

# Where memory runs short on demand, all calls of these go through the test.
WRAPPED = malloc calloc realloc reallocarray aligned_alloc strdup mmap64 free
SHORT_OF_MEMORY = test-check test-map test-record

# Unit tests, and the programs that other tests talk to. From the archive each takes what it uses; what a test
# brings itself comes first, so the simulator's disk takes the place of io/disk-aio.c.
$(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(ARCHIVE) $(BUILD)/link
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK) -pie -o $@ $(if $(filter $*,$(SHORT_OF_MEMORY)),$(WRAPPED:%=-Wl,--wrap=%)) \
		$(filter %.o %.a,$^) $(LIBRARIES)

$(BUILD)/tests/sim: $(call objects,$(SIM_SOURCES)) $(ARCHIVE) $(BUILD)/link
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK) -pie -o $@ $(WRAPPED:%=-Wl,--wrap=%) $(filter %.o %.a,$^) $(LIBRARIES)

# Loaded into the program under test, before everything else: not instrumented, whatever the program is.
$(BUILD)/tests/%-preload.so: tests/fake/%-preload.c Makefile $(BUILD)/compile
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LANGUAGE) -U_FILE_OFFSET_BITS -O2 -g -pthread $(WARNINGS) -fPIC -shared -o $@ $< -ldl

# The simulator with one deliberate fault in the engine: tests/mutations/ says which there are. What is mutated comes
# before the archive, and takes the place of what is in there.
$(BUILD)/mutants/%: tests/mutations/% tests/mutate $(call objects,$(SIM_SOURCES)) $(ARCHIVE) $(BUILD)/link
	$(call say,MUTANT,$*)
	$(Q)rm -rf $@.sources && tests/mutate $< $@.sources
	$(Q)cd $@.sources && find * -name '*.c' >list
	$(Q)while read -r source; do $(COMPILE) -O1 -g0 -w -c -o $@.sources/$$source.o $@.sources/$$source || exit 1; \
		done <$@.sources/list
	$(Q)$(LINK) -pie -o $@ $(WRAPPED:%=-Wl,--wrap=%) $$(sed 's,.*,$@.sources/&.o,' $@.sources/list) \
		$(filter %.o %.a,$^) $(LIBRARIES)

clean:
	rm -rf build rowsnap rowsnap.static

## Installing

BIN_FOLDER = $(DESTDIR)$(PREFIX)/bin
MAN_FOLDER = $(DESTDIR)$(PREFIX)/share/man
COMPLETION_FOLDER = $(DESTDIR)$(PREFIX)/share/bash-completion/completions

install: all
	install -D -m 755 $(PROGRAM) $(BIN_FOLDER)/rowsnap
	install -D -m 644 man/rowsnap.8 $(MAN_FOLDER)/man8/rowsnap.8
	install -D -m 644 man/rowsnap-format.5 $(MAN_FOLDER)/man5/rowsnap-format.5
	install -D -m 644 cmd/rowsnap.bash-completion $(COMPLETION_FOLDER)/rowsnap

uninstall:
	rm -f $(BIN_FOLDER)/rowsnap $(MAN_FOLDER)/man8/rowsnap.8 $(MAN_FOLDER)/man5/rowsnap-format.5 \
		$(COMPLETION_FOLDER)/rowsnap

## Testing

# There is no static program with sanitizers in it.
tests: $(PROGRAM) $(UNIT_PROGRAMS) $(SIM_PROGRAM) $(FAKES) $(if $(SANITIZE),,$(BUILD)/rowsnap.static)

# A compiler's warnings are less reliable in instrumented code (its manual says so): there they stay warnings.
check:
	$(Q)tests/install-tools build tests
	$(Q)$(MAKE) $(parallel) all tests
	$(Q)$(MAKE) $(parallel) SANITIZE=address,undefined BUILD=$(BUILD)/address-undefined WERROR= tests
	$(Q)$(MAKE) fuzzers
	$(Q)tests/run $(if $(TESTS),--only='$(TESTS)') $(BUILD) $(BUILD)/address-undefined

# SEEDS=A-B, or SEEDS=N: 1 to N; MINUTES=M: as many as there is time for; SCHEDULES=all, or A-B: see tests/sim/sim.c.
SEEDS =
MINUTES =
SCHEDULES =
JOBS = 1
MUTATION =
SIM_ARGUMENTS = --jobs=$(JOBS) $(if $(SCHEDULES),--schedules$(patsubst %,=%,$(filter-out all,$(SCHEDULES)))) \
	$(if $(SEEDS),--seeds=$(SEEDS)) $(if $(MINUTES),--minutes=$(MINUTES))
SIM_WANTED = $(if $(MUTATION),$(BUILD)/mutants/$(MUTATION),$(SIM_PROGRAM))

sim:
	$(Q)tests/install-tools build
	$(Q)$(MAKE) $(parallel) $(SIM_WANTED)
	$(Q)$(SIM_WANTED) $(if $(SEEDS)$(MINUTES)$(SCHEDULES),$(SIM_ARGUMENTS),--seeds=1000 --jobs=$(JOBS))

# How much of core/ and format/ the simulator and the tests reach, in some minutes: SEEDS= as for sim, TESTS= picks the
# tests. The whole of `sim --check` would take too long at -O0. Branches of assertions, which nothing may take, do not
# count.
COVERAGE = $(BUILD)/coverage
COVERAGE_TESTS = test-* damaged-stores.py *offline* check-* repair-* merge-* replay-* diff-* inspect-* extend-* \
	full-store-* write-back-* copy-ahead-* fold-* discard-* drop-frees-* restart-* serve-refuses-*
coverage:
	$(Q)tests/install-tools build tests coverage
	$(Q)$(MAKE) $(parallel) BUILD=$(COVERAGE) CFLAGS='-O0 --coverage $(CFLAGS)' tests
	$(Q)find $(COVERAGE) -name '*.gcda' -delete
	$(Q)$(COVERAGE)/tests/sim --seeds=$(or $(SEEDS),300) --jobs=2
	$(Q)tests/run --only='$(or $(TESTS),$(COVERAGE_TESTS))' $(COVERAGE)
	$(Q)gcovr --root . --object-directory $(COVERAGE)/obj --filter core/ --filter format/ \
		--exclude-branches-by-pattern '\s*assert\(' --html-details $(COVERAGE)/index.html \
		--txt $(COVERAGE)/coverage.txt --print-summary $(COVERAGE)/obj
	@echo 'Line by line: $(COVERAGE)/index.html; by file: $(COVERAGE)/coverage.txt'

# What make check takes a sample of: each is run to its end, also when another has failed.
SWEEPS = killed-anywhere failing-calls power-cut
sweep:
	$(Q)tests/install-tools build tests
	$(Q)$(MAKE) $(parallel) all tests
	$(Q)failed=; for sweep in $(SWEEPS); do echo "== $$sweep"; ROWSNAP=$(abspath $(PROGRAM)) \
		ROWSNAP_BUILD=$(abspath $(BUILD)) python3 tests/$$sweep.py --all || failed="$$failed $$sweep"; done; \
		if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

# The fuzz targets, by clang and its libFuzzer, in a folder of their own. Where these are missing the folder says so.
FUZZ_FOLDER = $(BUILD)/fuzz
FUZZ_SECONDS = 600
FUZZ_PROGRAMS = $(FUZZ_SOURCES:tests/fuzz/%.c=$(BUILD)/%)
FUZZ_PROBE = echo 'int LLVMFuzzerTestOneInput(const char *, unsigned long); \
	int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return !data && size; }' | \
	clang -fsanitize=fuzzer,address,undefined -x c -o $(FUZZ_FOLDER)/probe -

fuzzers:
	@mkdir -p $(FUZZ_FOLDER)
	@rm -f $(FUZZ_FOLDER)/skipped
	$(Q)if $(FUZZ_PROBE) 2>/dev/null; then \
		$(MAKE) $(parallel) CC=clang SANITIZE=address,undefined FUZZER=1 BUILD=$(FUZZ_FOLDER) WERROR= fuzz-programs; \
	else \
		echo 'clang with its libFuzzer and sanitizers is missing' >$(FUZZ_FOLDER)/skipped; \
	fi

fuzz-programs: $(FUZZ_PROGRAMS)
.SECONDARY: $(call objects,$(FUZZ_SOURCES))

$(BUILD)/fuzz-%: $(BUILD)/obj/tests/fuzz/fuzz-%.o $(ARCHIVE) $(BUILD)/link
	$(call say,LINK,$@)
	$(Q)$(LINK) -fsanitize=fuzzer -pie $(FUZZ_LINK) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBRARIES)

# With the commands' handlers.
$(BUILD)/fuzz-control: $(call objects,cmd/serve-control.c cmd/common.c)
$(BUILD)/fuzz-fuse: FUZZ_LINK = -Wl,--wrap=realpath

fuzz:
	$(Q)tests/install-tools build fuzz
	$(Q)$(MAKE) fuzzers
	$(Q)tests/fuzz/run --seconds=$(FUZZ_SECONDS) $(FUZZ_FOLDER) $(TARGET)

quickstart:
	$(Q)tests/install-tools build quickstart
	$(Q)$(MAKE) $(parallel) all
	$(Q)tests/quickstart

# BENCH='--quick --only="first-d1 pause"' and the like.
bench:
	$(Q)tests/install-tools build bench
	$(Q)$(MAKE) $(parallel) all
	$(Q)mkdir -p $(BUILD)
	$(Q)bench/run --json=$(BUILD)/bench.json --svg=$(BUILD)/bench.svg $(BENCH)

## Analysing: each of these fails on any finding

analyze:
	$(Q)tests/install-tools build analyze
	$(Q)$(MAKE) -k $(parallel) analyze-gcc analyze-tidy analyze-cppcheck analyze-scripts
	$(Q)$(MAKE) analyze-scan
	@echo 'No findings.'

analyze-gcc:
	$(Q)$(MAKE) CC=gcc BUILD=$(BUILD)/analyze-gcc CFLAGS='$(CFLAGS) -fanalyzer' WERROR=1 objects

# The object stands for the source and all its headers: when it is rebuilt, the source is looked at again.
$(BUILD)/tidy/%.ok: $(BUILD)/obj/%.o .clang-tidy
	$(call say,TIDY,$*.c)
	@mkdir -p $(@D)
	$(Q)clang-tidy --quiet --warnings-as-errors='*' $*.c -- $(LANGUAGE) >$@.log 2>&1 || { cat $@.log; exit 1; }
	@mv $@.log $@

analyze-tidy: $(PRODUCT_SOURCES:%.c=$(BUILD)/tidy/%.ok)

# cppcheck does not know the cleanup attribute, and would call leaked what is freed by it. (The others do know it.)
analyze-cppcheck:
	$(call say,CPPCHECK,)
	$(Q)cppcheck --quiet -j$(shell nproc) --error-exitcode=1 --enable=warning,performance,portability \
		--library=posix,gnu --std=c11 -Uauto_free -Uauto_close $(filter -D% -I%,$(LANGUAGE)) $(PRODUCT_SOURCES)

# scan-build sees only what is compiled under it, so that is everything, every time.
analyze-scan:
	$(call say,SCAN,)
	$(Q)rm -rf $(BUILD)/scan
	$(Q)scan-build --status-bugs -o $(BUILD)/scan-reports $(MAKE) $(parallel) BUILD=$(BUILD)/scan objects \
		>$(BUILD)/scan.log 2>&1 || { cat $(BUILD)/scan.log; exit 1; }

analyze-scripts:
	$(call say,SHELL,$(SCRIPTS))
	$(Q)shellcheck -x $(SCRIPTS)
	$(call say,MANDOC,man/)
	$(Q)mandoc -T lint -W warning $(wildcard man/*)
