# shellcheck shell=bash
# Compiler flags by kind of TPU; sourced: . launch/flags.sh [v4|v5e|v5p|v6e or an accelerator such as v6e-16]
#
# Sets LIBTPU_INIT_ARGS. Without an argument the kind comes from TPU_CHIP, TPU_ACCELERATOR_TYPE (GKE) or the machine's metadata
# (TPU VM); where none of them says, it sets nothing and says so. What LIBTPU_INIT_ARGS held before goes behind our flags, and
# of two equal flags libtpu takes the later: yours win. TPU_FLAGS=no sets nothing at all.
#
# libtpu ends the process at a flag that it does not know: tests/launch/test_flags.py compiles under each line below with the
# libtpu that we pin. The flags are those that MaxText publishes for dense models (benchmarks/xla_flags_library.py there), less
# what that libtpu refuses. No speed was measured. XLA_FLAGS stays as it is: the TPU compiler does not read it.

tpu_chip() { # WORD: prints v4, v5e, v5p or v6e; nothing where it cannot tell
  local said=${1:-${TPU_CHIP:-${TPU_ACCELERATOR_TYPE:-}}}
  if [ -z "$said" ]; then
    said=http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/accelerator-type
    said=$(curl --silent --fail --max-time 2 --header 'Metadata-Flavor: Google' "$said" 2> /dev/null) || true
  fi
  case $said in
    v4 | v4-*) echo v4 ;;
    v5e | v5e-* | v5litepod-*) echo v5e ;;
    v5p | v5p-*) echo v5p ;;
    v6e | v6e-*) echo v6e ;;
  esac
  return 0
}

tpu_flags() { # KIND: prints its flags, one a line
  # FSDP gathers each layer's weights just before they are used. Start the next layer's gather before this layer is done.
  # In libtpu 0.0.52 this changes the compiled program on v4 only; it is the default elsewhere, or of no use there.
  echo --xla_enable_async_all_gather=true
  # Several slices: sums of gradients cross the slow network between them. Rearrange those sums, and pipeline them behind the
  # backward pass, for weights of unequal sizes too. One slice: nothing changes.
  echo --xla_tpu_enable_data_parallel_all_reduce_opt=true
  echo --xla_tpu_data_parallel_opt_different_sized_ops=true
  case $1 in
    v4 | v5p) # two cores act as one: gathers stay out of the fusions that split over both, so that they can overlap
      echo --xla_tpu_megacore_fusion_allow_ags=false ;;
    v5e) # its gathers are cut into steps that ride along with matmuls, over several where one is too short, while the core
      # computes on. On by default, said so that it stays. Only here: for other kinds libtpu refuses to compile with these.
      echo --xla_tpu_enable_async_collective_fusion=true
      echo --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
      echo --xla_tpu_enable_async_collective_fusion_multiple_steps=true
      echo --xla_tpu_overlap_compute_collective_tc=true ;;
    v6e) # 96 of its 128 MiB of vector memory for one operation: larger tiles, fewer trips to HBM for its large matmul units
      echo --xla_tpu_scoped_vmem_limit_kib=98304 ;;
  esac
}

if [ "${TPU_FLAGS:-yes}" != no ]; then
  tpu_kind=$(tpu_chip "${1:-}")
  if [ -n "$tpu_kind" ]; then
    tpu_ours=$(tpu_flags "$tpu_kind" | tr '\n' ' ')
    case ${LIBTPU_INIT_ARGS:-} in
      "$tpu_ours"*) ;; # sourced before
      *) LIBTPU_INIT_ARGS="$tpu_ours${LIBTPU_INIT_ARGS:-}" ;;
    esac
    export LIBTPU_INIT_ARGS
  else
    echo "flags.sh: nothing says which TPU this is, so no compiler flags are set. Name it: TPU_CHIP=v5e (or v4, v5p, v6e)" >&2
  fi
fi
