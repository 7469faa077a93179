PYTHON ?= python3
PYTHON_NEWEST ?= $(shell command -v python3.13 || command -v python3.14 || echo /usr/bin/python3)

# Arguments for pytest in every test target, for example: make test PYTEST_ARGS="-n 2 -k lstm"
# `worksteal` keeps the tests of a module together, so that what they share is compiled once.
PYTEST_ARGS ?= -n auto --dist worksteal

# Arguments for the models that are drawn, for example: make fuzz FUZZ_ARGS="--seconds 3600 --processes 2"
FUZZ_ARGS ?= --seconds 300

# How many examples `make examples` runs at once.
JOBS ?= 1

# Arguments for the benchmarks, for example: make bench BENCH_ARGS="speed --sizes 128,512"
BENCH_ARGS ?= --json benchmarks/out/results.json --plots benchmarks/out

BIN := .venv/bin

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' etpc/__init__.py)
MKDOCS := NO_MKDOCS_2_WARNING=1 PYTHONPATH=. ETPC_DOCS_OF="etpc $(VERSION)"

EXAMPLES := $(filter-out %/__init__.py,$(wildcard examples/*.py))
# The modules that are a study of published results, by name.
STUDIES := $(basename $(notdir $(shell grep -l "^    main(STUDY)" examples/published/*.py)))
# How many seeds each study of `make results` has; its own number where this is empty.
SEEDS ?= 1
# The modules that are a task, by name; the others are what tasks share.
TASKS := $(basename $(notdir $(shell grep -l __main__ examples/tasks/*.py)))
AGENTS := streaming chains popgym ppo conditioning encoder

.PHONY: demo examples results test fuzz test-peer test-third-party test-device test-accelerators accelerators scale on-device test-leaks test-newest test-wheel test-affected-jaxlib coverage bench bench-versions api dist release-check lint lock docs docs-dev docs-release notebooks paper clean

demo: .venv/.demo
	$(BIN)/python examples/marked_digit.py

examples: .venv/.test
	@printf '%s\n' $(EXAMPLES) $(addprefix -mexamples.tasks.,$(TASKS)) -mexamples.on_device.drift -mexamples.on_device.fixed_point -mexamples.on_device.agent $(addprefix -mexamples.rl.,$(AGENTS)) \
		| xargs -P $(JOBS) -I {} sh -c 'echo "{}"; exec $(BIN)/python "{}"'

# A learner and an agent as C programs. With a compiler for ARM and QEMU, also on an emulated Cortex-M4.
DEVICE := examples/out/on_device
CORTEX_M4 := -O2 -std=c99 -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard --specs=rdimon.specs
# The program of an example, and what it reads.
define IN_C
	cc -O2 -std=c99 -Wall -Werror -I$(DEVICE)/$(1) examples/on_device/$(1).c $(DEVICE)/$(1)/learner.c -lm -o $(DEVICE)/$(1)/learn
	$(DEVICE)/$(1)/learn < $(2)
	! command -v arm-none-eabi-gcc || arm-none-eabi-gcc $(CORTEX_M4) -T examples/on_device/cortex_m4.ld -I$(DEVICE)/$(1) \
		examples/on_device/cortex_m4.c examples/on_device/$(1).c $(DEVICE)/$(1)/learner.c -lm -o $(DEVICE)/$(1)/learn.elf
	! command -v arm-none-eabi-size || arm-none-eabi-size $(DEVICE)/$(1)/learn.elf
	! command -v qemu-system-arm || qemu-system-arm -M mps2-an386 -kernel $(DEVICE)/$(1)/learn.elf -nographic \
		-monitor none -serial none -semihosting-config enable=on,target=native < $(2)
endef
on-device: .venv/.demo
	rm -rf $(DEVICE)
	$(BIN)/python -m examples.on_device.drift --export $(DEVICE)/drift
	$(call IN_C,drift,$(DEVICE)/drift/stream.txt)
	$(BIN)/python -m examples.on_device.agent --export $(DEVICE)/agent
	$(call IN_C,agent,/dev/null)

results: .venv/.demo
	printf '%s\n' $(STUDIES) | xargs -P 2 -I {} \
		$(BIN)/python -m examples.published.{} --json docs/results/{}.json $(if $(SEEDS),--seeds $(SEEDS))
	$(BIN)/python -m benchmarks.pages

# Nearly all time of the tests is compilation, which these flags make more than twice as fast.
# (jaxlib 0.11 and newer no longer take the last.)
COMPILED_QUICKLY := --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
test fuzz test-leaks: export XLA_FLAGS ?= $(COMPILED_QUICKLY) --xla_cpu_use_fusion_emitters=false
test-newest test-peer test-third-party test-device: export XLA_FLAGS ?= $(COMPILED_QUICKLY)
# Annotations are checked there too, which takes a third of the time.
test-newest: export ETPC_CHECKED ?= 1

test: .venv/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Prints its seed; the same seed draws the same models.
fuzz: .venv/.test
	$(BIN)/python -m tests.fuzz.run $(FUZZ_ARGS)

test-peer: .venv-peer/.peer
	.venv-peer/bin/python -m pytest tests/peer tests/interop tests/test_benchmarks.py -m "peer and not long" $(PYTEST_ARGS)

test-third-party: .venv-third-party/.test
	.venv-third-party/bin/python -m pytest tests/interop -m "third_party and not long" $(PYTEST_ARGS)

test-device: .venv-device/.test
	.venv-device/bin/python -m pytest tests/device tests/peer/test_nest.py -m "device or peer" $(PYTEST_ARGS)

# Compiled by the compilers of accelerators, which need no device.
test-accelerators: .venv-accelerators/.test
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python -m pytest tests/accelerators -m accelerators $(PYTEST_ARGS)

# What programs cost there, for example: make accelerators ACCELERATORS="--sizes 128 --steps 50 --batches 32 --on h100"
ACCELERATORS ?= --sizes 128,512,2048
accelerators: .venv-accelerators/.test
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python -m benchmarks accelerators $(ACCELERATORS) --record

# What an update takes on 1 to 256 chips, and the tables that docs/scale.md makes of it.
scale: .venv-accelerators/.test
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python -m benchmarks scale --record

test-leaks: .venv/.test
	JAX_CHECK_TRACER_LEAKS=1 $(BIN)/python -m pytest tests/test_docs.py -m leaks $(PYTEST_ARGS)

test-newest: .venv-newest/.test
	.venv-newest/bin/python -m pytest $(PYTEST_ARGS)

# Of the tests that are not slow, and the lines of the package that they run.
coverage: .venv/.test
	$(BIN)/python -m pytest --cov=etpc --cov-report=term $(PYTEST_ARGS)

# Source and wheel of a release, as an index gets them.
dist: .venv/.dev
	$(BIN)/python .ci/release.py $(TAG)
	rm -rf dist
	$(BIN)/python -m build --installer pip
	$(BIN)/twine check --strict dist/*

# The wheel in dist/, in an environment with nothing else but Optax, which the README asks for.
test-wheel:
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl optax
	.venv-wheel/bin/python tests/wheel.py

# A release but for its upload. TAG=v0.1.0 must be its version, with the date of the release everywhere.
release-check: dist test-wheel

# What changed in the public interface since the last tag.
api: .venv/.dev
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' HEAD^ 2> /dev/null) \
		|| { echo "There is no tag before this commit, so there is nothing to compare with."; exit 0; }; \
		echo "Since $$tag:"; $(BIN)/griffe check etpc --against "$$tag"

# The release of jaxlib that computes wrong Jacobians of norms, for those who have it all the same.
test-affected-jaxlib: export PYTHONPATH = .
test-affected-jaxlib:
	rm -rf .venv-affected
	$(PYTHON) -m venv .venv-affected
	.venv-affected/bin/python -m pip install --quiet --disable-pip-version-check equinox jax==0.10.2 jaxlib==0.10.2 networkx
	.venv-affected/bin/python tests/affected_jaxlib.py
	XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= .venv-affected/bin/python tests/affected_jaxlib.py off

bench: .venv-peer/.peer
	.venv-peer/bin/python -m benchmarks $(BENCH_ARGS)

# Commits, or a range of them, of which the benchmarks of several versions are run, for example: v0.1.0..main
VERSIONS ?= main^!
bench-versions: .venv-peer/.peer
	.venv-peer/bin/asv machine --yes --config benchmarks/asv.conf.json
	.venv-peer/bin/asv run --config benchmarks/asv.conf.json '$(VERSIONS)'

SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema
lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/zizmor --offline --quiet .github
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff

# Makes environments anew, of the newest packages, and writes these down for each Python.
FREEZE = $(1)/bin/python -m pip freeze --exclude-editable
lock:
	rm -rf .venv .venv-device .venv-peer .venv-accelerators
	$(MAKE) LOCKED= .venv/.dev .venv/.docs .venv-device/.test .venv-peer/.peer .venv-accelerators/.test
	($(call FREEZE,.venv) && $(call FREEZE,.venv-device)) | sort -u > $$($(call LOCK,.venv))
	($(call FREEZE,.venv-peer) && $(call FREEZE,.venv-accelerators)) | sort -u > $$($(call LOCK,.venv-peer))

notebooks: .venv/.test
	$(BIN)/python -m tests.notebooks

docs: .venv/.docs
	$(MKDOCS) $(BIN)/mkdocs build --strict

# Adds the pages of this version, or those of no release yet, to the branch gh-pages. Pushing it publishes them.
MIKE := ETPC_DOCS_VERSIONS=mike PATH="$(BIN):$$PATH" $(BIN)/mike
docs-release: .venv/.docs
	$(MKDOCS) $(MIKE) deploy --update-aliases $(basename $(VERSION)) latest
	$(MKDOCS) $(MIKE) set-default latest

docs-dev: .venv/.docs
	$(MKDOCS) ETPC_DOCS_OF="etpc $(VERSION), in development" $(MIKE) deploy dev

# The paper as a PDF, without the style of the journal, which paper.yml has.
paper: .venv/.paper
	$(BIN)/python paper/build.py

clean:
	rm -rf .venv .venv-peer .venv-device .venv-third-party .venv-newest .venv-accelerators .venv-wheel .venv-affected dist site paper/paper.pdf .asv .coverage .hypothesis .pytest_cache .ruff_cache benchmarks/out
	find etpc tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# With LOCKED=1, as continuous integration has it, the Pythons that have a file of versions get these; others the newest.
LOCKED ?=
LOCK = $(1)/bin/python -c 'import sys; print(".ci/lock-%d.%d.txt" % sys.version_info[:2])'

# Each set of packages has a stamp in the virtual environment that it is installed in.
.venv/.demo: EXTRAS = demo
.venv/.test: EXTRAS = demo,test
.venv/.dev: EXTRAS = demo,test,dev
.venv/.docs: EXTRAS = docs
.venv/.paper: EXTRAS = paper
.venv-peer/.peer: EXTRAS = demo,test,peer,bench
.venv-newest/.test: EXTRAS = demo,test
.venv-device/.test: EXTRAS = test,device,nest
.venv-third-party/.test: EXTRAS = test
.venv-accelerators/.test: EXTRAS = demo,test,bench,tpu,cuda

# Packages of which an example reads a data file only: what they depend on stays away.
.venv/.demo .venv/.test: DATA = aeon==1.6.0

# The tests of braintrace, which its wheel has not, in a folder of the environment.
.venv-peer/.peer: SOURCE = tests/peer/source.txt
.venv-peer/.peer: tests/peer/source.txt

# Packages of other people's models; of the latter, too, what they depend on stays away.
.venv-third-party/.test: PINNED = -r tests/interop/requirements.txt
.venv-third-party/.test: LOCKED =
.venv-third-party/.test: DATA = memorax==1.0.1 noxton==0.1.4 rnn-jax==0.0.2 spyx==1.0.0

.venv/.demo .venv/.test .venv/.dev .venv/.docs .venv/.paper .venv-device/.test: BASE = $(PYTHON)
.venv-newest/.test .venv-peer/.peer .venv-third-party/.test .venv-accelerators/.test: BASE = $(PYTHON_NEWEST)
.venv-third-party/.test: tests/interop/requirements.txt

.venv/.demo .venv/.test .venv/.dev .venv/.docs .venv/.paper .venv-peer/.peer .venv-device/.test .venv-newest/.test .venv-third-party/.test .venv-accelerators/.test: pyproject.toml
	test -x $(@D)/bin/python || $(BASE) -m venv $(@D)
	lock=$$($(call LOCK,$(@D))); test -n '$(LOCKED)' -a -f $$lock || lock=/dev/null; \
		$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $$lock --editable '.[$(EXTRAS)]' $(PINNED)
	$(if $(DATA),$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(DATA))
	$(if $(SOURCE),rm -rf $(@D)/source && $(@D)/bin/python -m pip download --quiet --disable-pip-version-check \
		--no-deps --no-binary braintrace --require-hashes --requirement $(SOURCE) --dest $(@D)/source && \
		tar --extract --gzip --file $(@D)/source/*.tar.gz --directory $(@D)/source --strip-components 1)
	touch $@

# The stamps of one environment must not be made at the same time.
.NOTPARALLEL:
