# Sourced by the scripts beside it: makes .venv with the packages of a requirements file and sets $python to it.
# BINARYDM_VENV names another folder for the environment.
install() {  # install REQUIREMENTS
  local venv=${BINARYDM_VENV:-.venv}
  local base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $base is older than 3.11" >&2; exit 1; }
  python=$venv/bin/python
  # The stamp holds the files that were installed: nothing is done again while they are the same.
  local stamp=$venv/installed-$1
  if ! cat requirements*.txt | cmp -s - "$stamp"; then
    # By pip, which comes last: an environment that was broken off, or made where venv was not whole, is made again.
    "$python" -m pip --version > /dev/null 2>&1 || "$base" -m venv "$venv"
    echo "installing the packages of $1 into $venv ..."
    "$python" -m pip install --quiet --disable-pip-version-check -r "$1"
    cat requirements*.txt > "$stamp"
  fi
}
