#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A measurement on a Jetson Orin, from nothing to one row of JSON: environment, bundle, engine files, vla-bench.
#
#   sh scripts/jetson_run.sh --checkpoint DIR [--wheel FILE] [--work DIR] [--jetpack 6.2|7.2] [--precision fp16|fp32]
#                            [--synthetic | --dataset DATASET] [--set-clocks] [--dry-run]
#   sh scripts/jetson_run.sh --bundle DIR ...      a bundle that was made on a workstation; torch is not needed then
#
# --dry-run prints every step as it would be typed and runs none. The steps up to "engines" need no GPU and run on any
# Linux machine with --jetpack; "engines" is the first that touches the device, and says what is missing where there is
# none. What is there already (environment, bundle) is used again. Without --wheel the clone this script lies in is
# installed. --synthetic: for a policy with random weights. --set-clocks fixes the clocks (sudo jetson_clocks); choose the
# power mode before (docs/jetson.md). The row lies in WORK/orin-nano.jsonl.
set -eu

work=$HOME/vla-jetson wheel= checkpoint= bundle= jetpack= precision=fp16 measured_on= clocks= dry=
here=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "jetson_run: $*" >&2; exit 2; }
value() { [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value; see the head of this script"; }
while [ $# -gt 0 ]; do
    case $1 in
    --work | --wheel | --checkpoint | --bundle | --jetpack | --precision | --dataset)
        value "$@"
        case $1 in
        --work) work=$2 ;; --wheel) wheel=$2 ;; --checkpoint) checkpoint=$2 ;; --bundle) bundle=$2 ;;
        --jetpack) jetpack=$2 ;; --precision) precision=$2 ;; --dataset) measured_on="--dataset $2" ;;
        esac
        shift ;;
    --synthetic) measured_on=--synthetic ;;
    --set-clocks) clocks=yes ;;
    --dry-run) dry=yes ;;
    *) fail "unknown word $1; see the head of this script" ;;
    esac
    shift
done
[ -n "$checkpoint$bundle" ] || fail "no policy: give --checkpoint DIR, or --bundle DIR made on a workstation"
[ -z "$checkpoint" ] || [ -z "$bundle" ] || fail "--checkpoint and --bundle are two ways to one thing; give one"
case $precision in fp16 | fp32) ;; *) fail "--precision is $precision; it must be fp16 or fp32" ;; esac
[ -z "$checkpoint" ] || [ "$precision" = fp32 ] || [ -n "$measured_on" ] ||
    fail "$precision is measured on something: give --dataset DATASET, or --synthetic for random weights"

release=/etc/nv_tegra_release # "# R36 (release), REVISION: 4.3, ..."
if [ -z "$jetpack" ]; then
    [ -r $release ] || fail "$release is not there: this is no Jetson; say --jetpack 6.2 or 7.2 to go as far as one is not needed"
    case $(sed -n 's/^# R\([0-9]*\).*REVISION: \([0-9]*\).*/\1.\2/p' $release) in
    36.4) jetpack=6.2 ;;
    39.*) jetpack=7.2 ;;
    *) fail "$(head -n 1 $release): this script knows L4T 36.4 (JetPack 6.2) and 39 (7.2)" ;;
    esac
fi
case $jetpack in
6.2) cuda='cuda-bindings>=12.6,<13' ;;
7.2) cuda='cuda-bindings>=13' ;;
*) fail "--jetpack is $jetpack; it must be 6.2 or 7.2" ;;
esac

say() { echo "== $*"; }
run() { # shown as it would be typed; with --dry-run no more than that
    line=+
    for word; do
        case $word in
        *[!A-Za-z0-9_./:=,+-]*) line="$line '$(echo "$word" | sed "s/'/'\\\\''/g")'" ;;
        *) line="$line $word" ;;
        esac
    done
    echo "$line"
    [ -n "$dry" ] || "$@"
}
python=$work/venv/bin/python
source=${wheel:-$here}
extras=export,ort
case $measured_on in --dataset*) extras=$extras,data ;; esac
[ -n "$bundle" ] || source="$source[$extras]"

say "1 facts: JetPack $jetpack"
run uname -srm
[ ! -r $release ] || run head -n 1 $release
run nproc
run grep MemTotal /proc/meminfo

say "2 power and clocks: a latency without both is worth nothing"
if [ -n "$clocks" ]; then
    run sudo jetson_clocks
fi
if command -v nvpmodel > /dev/null || [ -n "$dry" ]; then
    run nvpmodel -q
else
    echo "no nvpmodel here"
fi

say "3 environment"
[ -n "$dry" ] || command -v gcc > /dev/null ||
    fail "no gcc, which builds the C core: sudo apt-get install -y python3-venv python3-dev gcc python3-libnvinfer"
run mkdir -p "$work"
[ -x "$python" ] || run python3 -m venv --system-site-packages "$work/venv"
run "$python" -m pip install -q --upgrade "setuptools>=77" wheel
run "$python" -m pip install -q "$cuda" "$source"
run "$python" -c "import vla_edge._core; print('vla-edge', __import__('vla_edge').__version__, 'and its C core')"

if [ -z "$bundle" ]; then
    bundle=$work/bundle-$precision
    say "4 export on the device, with the memory plan for this board"
    if [ -e "$bundle" ]; then
        echo "$bundle is there already"
    else
        # shellcheck disable=SC2086 # two words or none
        run "$work/venv/bin/export-engines" --checkpoint "$checkpoint" --precision "$precision" --frames 1 --held-out 1 \
            $([ "$precision" = fp32 ] || echo "$measured_on") --backend tensorrt --build-on-device --out "$bundle"
    fi
fi

say "5 engines: the first step that needs the device"
run "$work/venv/bin/export-engines" --bundle "$bundle" --backend tensorrt

say "6 measure, under the contract of the public row of 189.9 ms"
run "$work/venv/bin/vla-bench" --preset orin-nano --bundle "tensorrt:$bundle" --rounds 100 --out "$work"
[ -n "$dry" ] || say "the row: $work/orin-nano.jsonl"
