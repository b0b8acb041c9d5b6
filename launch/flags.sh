# shellcheck shell=bash
# TPU compiler flags by chip. Source it: . launch/flags.sh [v4|v5e|v5p|v6e or an accelerator such as v6e-16]
#
# Sets LIBTPU_INIT_ARGS. Without an argument the chip comes from TPU_CHIP, TPU_ACCELERATOR_TYPE (GKE) or the VM's metadata; if
# none of them names a chip, it sets no flags and prints a warning. A LIBTPU_INIT_ARGS that is already set is appended, and libtpu
# uses the last of two equal flags, so it overrides the flags below. TPU_FLAGS=no sets nothing.
#
# libtpu exits at an unknown flag: tests/launch/test_flags.py compiles with each line below and the pinned libtpu. The flags are
# those that MaxText publishes for dense models (benchmarks/xla_flags_library.py there), without those that this libtpu refuses.
# Their speed was not measured. XLA_FLAGS is not changed: the TPU compiler does not read it.

tpu_chip() { # [ACCELERATOR]: prints v4, v5e, v5p or v6e; nothing if unknown
  local accelerator=${1:-${TPU_CHIP:-${TPU_ACCELERATOR_TYPE:-}}}
  if [ -z "$accelerator" ]; then
    accelerator=http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/accelerator-type
    accelerator=$(curl --silent --fail --max-time 2 --header 'Metadata-Flavor: Google' "$accelerator" 2> /dev/null) || true
  fi
  case $accelerator in
    v4 | v4-*) echo v4 ;;
    v5e | v5e-* | v5litepod-*) echo v5e ;;
    v5p | v5p-*) echo v5p ;;
    v6e | v6e-*) echo v6e ;;
  esac
  return 0
}

tpu_flags() { # CHIP: prints its flags, one per line
  # FSDP all-gathers each layer's weights just before their use. Start the next layer's all-gather during the current layer.
  # In libtpu 0.0.52 this changes the compiled program on v4 only; elsewhere it is the default or has no effect.
  echo --xla_enable_async_all_gather=true
  # Several slices: gradient all-reduces cross the data-center network. Reorder them and overlap them with the backward pass, also
  # for weights of different sizes. No effect on one slice.
  echo --xla_tpu_enable_data_parallel_all_reduce_opt=true
  echo --xla_tpu_data_parallel_opt_different_sized_ops=true
  case $1 in
    v4 | v5p) # megacore: keep all-gathers out of the fusions that are split over both cores, so that they can overlap
      echo --xla_tpu_megacore_fusion_allow_ags=false ;;
    v5e) # split all-gathers into steps and fuse them with one or several matmuls. The default; set explicitly so that it stays.
      # v5e only: libtpu refuses to compile for other chips with these flags.
      echo --xla_tpu_enable_async_collective_fusion=true
      echo --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
      echo --xla_tpu_enable_async_collective_fusion_multiple_steps=true
      echo --xla_tpu_overlap_compute_collective_tc=true ;;
    v6e) # 96 of 128 MiB of VMEM for one operation: larger tiles and less HBM traffic
      echo --xla_tpu_scoped_vmem_limit_kib=98304 ;;
  esac
}

if [ "${TPU_FLAGS:-yes}" != no ]; then
  tpu_kind=$(tpu_chip "${1:-}")
  if [ -n "$tpu_kind" ]; then
    tpu_defaults=$(tpu_flags "$tpu_kind" | tr '\n' ' ')
    case ${LIBTPU_INIT_ARGS:-} in
      "$tpu_defaults"*) ;; # sourced before
      *) LIBTPU_INIT_ARGS="$tpu_defaults${LIBTPU_INIT_ARGS:-}" ;;
    esac
    export LIBTPU_INIT_ARGS
  else
    echo "flags.sh: unknown TPU chip, no compiler flags set. Set TPU_CHIP=v5e (or v4, v5p, v6e)" >&2
  fi
fi
