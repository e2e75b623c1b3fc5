# Sourced by the other scripts: goes to the project's folder and makes .venv with everything that FILE pins.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
#
# Does nothing when .venv holds it already. PYTHON=python3.12 chooses another interpreter.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python_program=${PYTHON:-python3}

if ! "$python_program" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: $python_program is missing or older than Python 3.10; install one, or name it: PYTHON=python3.12 bash $0" >&2
    exit 2
fi

stamp=.venv/installed-$1
if ! cmp --silent <(cat requirements.txt requirements-foundation.txt "$1") "$stamp"; then
    echo "== Installing the packages of $1 into .venv (some minutes, once)"
    if ! "$python_program" -m venv .venv; then
        echo "error: $python_program cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
    cat requirements.txt requirements-foundation.txt "$1" > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
