# Two commands for a newcomer: `make demo` and `make test`. Both make .venv. To change the code, run
# `make develop` first (CONTRIBUTING.md).

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TEST_PACKAGE = $(CURDIR)/.venv/demo-package
# Every variant that some CPU can run, for the tests that choose by the version of ONNX Runtime.
TEST_VARIANTS = $(CURDIR)/.venv/demo-variants
CPU_VARIANTS = fp32,fp16,int8,web,int4,fast
TEST_OPENVINO = $(CURDIR)/.venv/demo-openvino

# Processes of pytest. Each takes some 3 GB, most of it PyTorch's. A file's tests run in one process, in
# which they share what they export.
TEST_PROCESSES ?= 2
PYTEST_IN_PARALLEL = -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# The graphs of `--operators standard`, for engines other than ONNX Runtime.
TEST_STANDARD = $(CURDIR)/.venv/demo-standard
# Packages with the files of onnxruntime-genai.
TEST_GENAI = $(CURDIR)/.venv/demo-genai

.PHONY: develop demo test test-runtime test-oldest test-openvino test-clients test-slow check format train clean

# --- the main job: export the built-in model and ask it questions; no PyTorch -------------------

demo: .venv/installed-demo
	.venv/bin/fastvlm-onnx export demo -o demo-onnx --overwrite
	.venv/bin/fastvlm-onnx demo --model demo-onnx

# --- development: all packages, and the links through which editors read the package -------------

develop: .venv/installed-all .types

# --- tests ---------------------------------------------------------------------------------------

test: .venv/installed-all test-runtime
	.venv/bin/python $(PYTEST_IN_PARALLEL)

# The runtime's tests where the runtime's own dependencies are all that is installed.
test-runtime: .venv/installed-all .venv-cpu/installed
	$(MAKE) test-packages
	FASTVLM_ONNX_TEST_PACKAGE=$(TEST_PACKAGE) FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) \
		.venv-cpu/bin/python $(PYTEST_IN_PARALLEL) tests/runtime

# The same with the oldest versions that pyproject.toml allows.
test-oldest: .venv/installed-all .venv-oldest/installed
	$(MAKE) test-packages
	FASTVLM_ONNX_TEST_PACKAGE=$(TEST_PACKAGE) FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) \
		.venv-oldest/bin/python -m pytest tests/runtime

# The packages that environments without the export side test with.
test-packages: .venv/installed-all
	.venv/bin/fastvlm-onnx export demo -o $(TEST_PACKAGE) --overwrite
	.venv/bin/fastvlm-onnx export demo -o $(TEST_VARIANTS) --overwrite --precision $(CPU_VARIANTS)
.PHONY: test-packages

test-slow: .venv/installed-all test-openvino
	.venv/bin/python -m pytest -m slow

# A provider other than the CPU's: OpenVINO as a build of ONNX Runtime, and as a plugin beside it.
# The plugin offers no device on AMD processors; its tests are then skipped.
test-openvino: .venv/installed-all .venv-openvino/installed .venv-openvino-plugin/installed
	$(MAKE) test-packages
	.venv/bin/fastvlm-onnx export demo -o $(TEST_OPENVINO) --overwrite --precision fast --target openvino
	FASTVLM_ONNX_TEST_PACKAGE=$(TEST_PACKAGE) FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) \
		FASTVLM_ONNX_TEST_OPENVINO=$(TEST_OPENVINO) \
		.venv-openvino/bin/python -m pytest -m slow tests/runtime/test_openvino.py
	FASTVLM_ONNX_TEST_PACKAGE=$(TEST_PACKAGE) FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) \
		FASTVLM_ONNX_TEST_OPENVINO=$(TEST_OPENVINO) \
		.venv-openvino-plugin/bin/python -m pytest -m slow tests/runtime/test_openvino.py

# Programs that run packages without this project's runtime. Debian has what they need beside these
# environments: npm, cmake, chromium, clang.
test-clients: .venv/installed-all .venv-engines/installed .venv-genai/installed \
		tests/clients/transformers_js/node_modules
	$(MAKE) test-packages
	.venv/bin/fastvlm-onnx export demo -o $(TEST_STANDARD) --overwrite --operators standard
	FASTVLM_ONNX_TEST_STANDARD=$(TEST_STANDARD) FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) \
		.venv-engines/bin/python -m pytest -m slow tests/clients/test_engines.py
	for variant in fp32 int4; do .venv/bin/fastvlm-onnx export demo --layout genai --overwrite \
		-o $(TEST_GENAI)-$$variant --precision $$variant || exit; done
	FASTVLM_ONNX_TEST_GENAI_FP32=$(TEST_GENAI)-fp32 FASTVLM_ONNX_TEST_GENAI_INT4=$(TEST_GENAI)-int4 \
		.venv-genai/bin/python -m pytest -m slow tests/clients/test_genai.py
	.venv/bin/python -m pytest -m slow tests/clients/test_transformers_js.py

# The client for Node and browsers: types, then the tests.
test-javascript: .venv/installed-all
	$(MAKE) test-packages
	cd clients/javascript && ONNXRUNTIME_NODE_INSTALL=skip npm ci --no-audit --no-fund && npm run check && \
		FASTVLM_ONNX_TEST_VARIANTS=$(TEST_VARIANTS) npm test
test-clients: test-javascript
.PHONY: test-javascript

# The client in C++. ONNXRUNTIME_ROOT names ONNX Runtime's headers and library; without it they are
# downloaded, and the tests are skipped where they cannot be.
test-cpp: .venv/installed-all
	.venv/bin/python -m pytest -m slow tests/clients/test_cpp.py
test-clients: test-cpp
.PHONY: test-cpp

# --- lint and types ------------------------------------------------------------------------------

check: .venv/installed-all .types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/installed-all
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# mypy and pyright cannot map folders as setuptools does. They read the package through links.
.types:
	mkdir -p .types/fastvlm_onnx
	cd .types/fastvlm_onnx && ln -sf ../../fastvlm_onnx/* . && ln -sfn ../../export export \
		&& ln -sfn ../../runtime runtime
.PHONY: .types

# --- environments --------------------------------------------------------------------------------

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[cpu,export]"
	touch $@

.venv/installed-all: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[cpu,serve,structured,ray,export,verify,dev]"
	touch $@ .venv/installed-demo

.venv-cpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cpu
	.venv-cpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[cpu]" pytest pytest-xdist
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-oldest.txt -e ".[cpu]" pytest
	touch $@

.venv-openvino/installed: pyproject.toml
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install --quiet --disable-pip-version-check \
		-e . onnxruntime-openvino==1.24.1 pytest
	touch $@

.venv-openvino-plugin/installed: pyproject.toml
	$(PYTHON) -m venv .venv-openvino-plugin
	.venv-openvino-plugin/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[cpu,openvino]" pytest
	touch $@

# Other engines than ONNX Runtime. The project itself is installed without its dependencies.
.venv-engines/installed: pyproject.toml
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt openvino==2026.4.1 tract==0.23.9 opencv-python-headless==5.0.0.93 \
		numpy onnx pillow pytest tokenizers
	.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.venv-genai/installed: pyproject.toml
	$(PYTHON) -m venv .venv-genai
	.venv-genai/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[cpu]" onnxruntime-genai==0.18.0 pytest
	touch $@

tests/clients/transformers_js/node_modules: tests/clients/transformers_js/package-lock.json
	cd tests/clients/transformers_js && ONNXRUNTIME_NODE_INSTALL=skip npm ci --no-audit --no-fund
	touch $@

# --- the built-in model, from nothing (days on two cores; it resumes) --------------------------------

train: .venv/installed-all
	.venv/bin/python benchmarks/train_demo.py

clean:
	rm -rf .venv .venv-cpu .venv-oldest .venv-openvino .venv-openvino-plugin .venv-engines .venv-genai .types .training demo-onnx build dist *.egg-info
