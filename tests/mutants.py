"""Small changes that break one behaviour each, and the test that has to notice.

    python tests/mutants.py                 all of them; minutes
    python tests/mutants.py --only ledger   those whose file, breach or test has this text

The tracked files are copied into a temporary folder. There the named tests must pass as they are;
then one mutant at a time is applied, and its test must fail. Exit codes: 0 all are killed, 1 one is
not, 2 the tests fail without a change or there is no such mutant.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0  # for one test, on a busy machine
KILLED = "killed"
SURVIVED = "SURVIVED"
VERDICTS = {1: KILLED, 5: "NO TEST"}  # by pytest's exit code


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one file."""

    file: str
    old: str  # occurs once in the file
    new: str
    breaks: str  # what a user loses by it
    test: str  # that notices: a file of tests/, and one test of it


def mutants_of(file: str, table: str) -> list[Mutant]:
    """A table names a test at the margin and, below it, the changes that it has to notice.

    Each change is a line on what it breaks, then "- " before its old and "+ " before its new lines.
    """
    test, changes = "", []
    for line in table.strip().splitlines():
        if line.startswith("["):
            test += line  # the parameters of a long name
        elif not line.startswith("    "):
            test = line
        elif line.startswith("    -"):
            changes[-1][2].append(line[6:])
        elif line.startswith("    +"):
            changes[-1][3].append(line[6:])
        else:
            changes.append((test, line.strip(), [], []))
    return [
        Mutant(file, "\n".join(old), "\n".join(new), breaks, test)
        for test, breaks, old, new in changes
    ]


MODEL = mutants_of(
    "train_gpt.py",
    r"""
test_specification.py::test_train_gpt_states_the_checksum_and_both_decoders_check_it
    a checksum of the weights in every artifact
    - config = config | dict(weights_crc32=
    + config = config | dict(crc32=
    a checksum that is checked before the scores
    - if config.get("weights_crc32", crc) != crc:
    + if False:
test_codec.py::test_a_matrix_that_a_weight_keeps_in_float32_is_named
    matrices that stay float32 are named
    - if role_of(name).levels and largest >= HALF_LIMIT:
    + if False:
test_settings.py::test_the_numbers_of_the_system[pcll]
    eleven layers
    - num_layers: int = setting(11,
    + num_layers: int = setting(12,
    the rotary base of 50,000
    - rope_base: float = setting(50000.0,
    + rope_base: float = setting(10000.0,
    the leaky ReLU's slope of 0.5
    - 0.5, "of the leaky ReLU
    + 0.0, "of the leaky ReLU
test_model.py::test_the_full_model_has_26_million_parameters
    26.4 million parameters
    - mlp_hidden: int = setting(1500,
    + mlp_hidden: int = setting(1536,
test_model.py::test_initial_weights_of_every_kind[pcll]
    the embedding's initial size
    - nn.init.normal_(self.tok_emb, std=0.005)
    + nn.init.normal_(self.tok_emb, std=0.02)
    the bigram hash's initial scale
    - self.scale = parameter(fill=0.05)
    + self.scale = parameter(fill=0.5)
    attention gates that begin open
    - self.gate_bias = parameter(s.num_heads, fill=4.0)
    + self.gate_bias = parameter(s.num_heads)
    matrices that begin orthogonal
    - nn.init.orthogonal_(p)
    + nn.init.normal_(p, std=0.02)
    blocks that begin without the first hidden state
    - self.resid_mix.data[0] = 1
    + self.resid_mix.data[:] = 1
    queries' gain of 1.5
    - qk_gain_init: float = setting(1.5,
    + qk_gain_init: float = setting(1.0,
    a value residual that begins as the mean of both
    - self.value_mix = parameter(2, fill=0.5)
    + self.value_mix = parameter(2, fill=1.0)
    output projections that begin at zero
    - self.out = parameter(s.model_dim, s.model_dim)
    + self.out = nn.Parameter(torch.eye(s.model_dim))
    U-Net skips that begin at one
    - self.skip_weights = parameter(num_skips, s.model_dim, fill=1.0)
    + self.skip_weights = parameter(num_skips, s.model_dim)
test_model.py::test_logits_are_capped_and_tied_to_the_embedding
    soft-capped logits
    - torch.tanh(logits / LOGIT_SOFTCAP)
    + (logits / LOGIT_SOFTCAP)
test_model.py::test_bigram_buckets_as_numbers
    the bigram hash's buckets
    - 27191 * tokens.roll(1, dims=1)
    + 36313 * tokens.roll(1, dims=1)
    a bucket of their own for tokens without one before
    - torch.where(no_previous, last, bucket)
    + bucket
test_model.py::test_smear_and_bigram_stop_at_a_document_start[1-False]
    documents that see nothing of the one before
    - (tokens == BOS_ID) & self.bos_reset
    + (tokens == BOS_ID) & False
test_model.py::test_embedding_smear_and_bigram_follow_their_formulas
    the smear gate's mean of two
    - x = (1 - gate) * x + gate * shift_right(x, no_previous)
    + x = x + gate * shift_right(x, no_previous)
    the norm after the embeddings
    -         x = rms_norm(x)
    +         x = x
test_model.py::test_attention_and_mlp_follow_their_formulas
    the first hidden state in every block
    - x = mix[0] * x + mix[1] * x0
    + x = mix[0] * x + mix[1] * x
    normed inputs over the root of the layer's number
    - 1 / math.sqrt(index + 1)
    + 1 / (index + 1)
    normed queries
    - q = rms_norm(self.project_heads(x, self.q)) *
    + q = self.project_heads(x, self.q) *
    the value residual
    - v = mix[0] * v_first + mix[1] * v
    + v = mix[0] * v + mix[1] * v
    exclusive attention as a projection
    - own = F.normalize(v, dim=-1)
    + own = v
    the leaky ReLU squared
    - return linear(x.square(), down
    + return linear(x, down
    a sigmoid on attention's gate
    - y * torch.sigmoid(gate + self.gate_bias.to(x.dtype))[..., None]
    + y * (gate + self.gate_bias.to(x.dtype))[..., None]
test_model.py::test_rotary_turns_pairs_of_the_first_dimensions_by_position_times_frequency
    rotary positions
    - b * cos - a * sin, rest
    + b * cos + a * sin, rest
test_model.py::test_causal_with_every_feature_on_and_off[{}]
    attention that does not see the future
    - is_causal=True
    + is_causal=False
test_model.py::test_which_layers_have_exclusive_attention[11-4-exclusive0]
    exclusive attention in the last four layers
    - index >= s.num_layers - s.xsa_last_n
    + index > s.num_layers - s.xsa_last_n
test_model.py::test_unet_skips_join_first_half_to_second_half_last_in_first_out
    U-Net skips last in, first out
    - skips.pop()
    + skips.pop(0)
test_forward.py::test_same_logits[{}]
    the last norm before the logits
    - linear(rms_norm(x), self.tok_emb)
    + linear(x, self.tok_emb)
test_forward.py::test_same_logits[{'gate_dims': 7}]
    a narrow gate that is 1 at first
    - y * 2 * torch.sigmoid(gate)[..., None]
    + y * torch.sigmoid(gate)[..., None]
""",
)

TRAINING = mutants_of(
    "train_gpt.py",
    r"""
test_training.py::test_the_average_is_an_exponential_one_from_the_first_step_on[0.5]
    the EMA: a plain mean in its place
    - , params, 1 - decay)
    + , params, 1 / (state.step + 1))
    an EMA that starts with the first step's weights
    - decay = s.ema_decay if state.step > 0 else 0.0
    + decay = s.ema_decay
test_watched_run.py::test_the_artifact_holds_the_average_and_not_the_last_weights
    the EMA in the artifact: the last weights in its place
    - model.load_state_dict(state.ema.state_dict())
    + pass
test_training.py::test_the_gradient_is_clipped_to_a_global_norm[None]
    the gradient clip of training
    - if s.grad_clip_norm:
    + if not s.grad_clip_norm:
    a gradient clip of 0.3
    - grad_clip_norm: float = setting(0.3,
    + grad_clip_norm: float = setting(1.0,
test_training.py::test_momentum_and_rates_of_each_step
    the momentum's warm-up
    - warm = min(1.0, state.step / max(s.muon_momentum_warmup_steps, 1))
    + warm = 1.0
    the momentum's warm-up for matrices of every shape
    - for group in state.optimizers[0].param_groups:
    + for group in state.optimizers[0].param_groups[:1]:
test_settings.py::test_the_numbers_of_the_system[pcll]
    the EMA's decay of 0.997
    - ema_decay: float = setting(0.997,
    + ema_decay: float = setting(0.99,
test_optimizer.py::test_adamw_follows_its_formulas[normuon]
    AdamW's betas of 0.9 and 0.95
    - adamw = torch.optim.AdamW(list(groups.values()), betas=(0.9,
    + adamw = torch.optim.AdamW(list(groups.values()), betas=(0.8,
    embeddings that do not decay
    - fused = ranks.device.type == "cuda"
    + fused = ranks.device.type == "cuda"; groups["embedding"]["weight_decay"] = 0.04
test_optimizer.py::test_normuon_equals_a_plain_loop_over_matrices
    the matrices' weight decay
    - 1 - group["lr"] * group["weight_decay"]
    + 1.0
    five Newton-Schulz steps
    - steps: int = 5)
    + steps: int = 4)
    Nesterov momentum
    - update = grad.lerp(average, momentum)
    + update = average.clone()
    NorMuon's second moment of 0.95
    - keepdim=True), 1 - beta2)
    + keepdim=True), 0.1)
test_speed.py::test_in_bfloat16_the_mlp_is_a_multiple_of_128_wide
    an MLP as wide as a GPU likes it
    - % 128
    + % 64
test_speed.py::test_in_bfloat16_the_scales_are_in_the_weights
    scales that cost no pass over the activations
    - return linear(x, scale[:, None] * w)
    + return scale.to(x.dtype) * linear(x, w)
test_speed.py::test_in_float32_each_product_is_with_the_parameter_itself
    matrices that calibration recognizes
    - if up.dtype != x.dtype and not hasattr(up, "adapter"):
    + if True:
test_speed.py::test_loss_and_gradients_are_those_of_the_plain_form
[1500-pcll-NarrowMLP+ScalingBlock+LateGainAttention]
    the scale of each output, not of each input
    - return linear(x, scale[:, None] * w)
    + return linear(x, scale.mean() * w)
test_speed.py::test_gradients_add_up_in_the_flat_buffer
    the gradients of all micro-batches
    - torch._foreach_add_([p.grad
    + torch._foreach_copy_([p.grad
    parameters that a loss does not reach
    - materialize_grads=True
    + materialize_grads=False
test_speed.py::test_mix_order_reductions_are_off_where_there_is_such_a_switch
    a backward pass without Inductor's mix-order reductions
    - options = {switch: False} if
    + options = {} if
    versions without the switch
    - if switch in torch._inductor.list_options() else {}
    + if switch else {}
test_speed.py::test_any_number_of_ranks_exports_the_same_bytes
    every tensor is encoded by one rank
    - by_cost[ranks.rank :: ranks.world_size]
    + by_cost[ranks.rank :: 2]
test_speed.py::test_two_ranks_have_as_many_tensors_of_each_shape
    ranks that take as long as each other
    - (weights[name].size, weights[name].shape))
    + weights[name].size)
test_optimizer.py::test_every_parameter_is_in_one_group_with_its_rate[normuon]
    the embeddings' learning rate
    - embedding=(s.embed_lr,
    + embedding=(s.scalar_lr,
test_settings.py::test_the_numbers_of_the_system[pcll]
    the matrices' learning rate
    - matrix_lr: float = setting(0.03,
    + matrix_lr: float = setting(0.02,
    786,432 tokens a step
    - train_batch_tokens: int = setting(786432,
    + train_batch_tokens: int = setting(524288,
    the vectors' learning rate
    - scalar_lr: float = setting(0.02,
    + scalar_lr: float = setting(0.04,
    activations in bfloat16
    - dtype: str = setting("bfloat16",
    + dtype: str = setting("float32",
test_optimizer.py::test_rows_are_evened_out_and_the_norm_is_kept
    NorMuon's update of the same norm
    - return update * (norm / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10))
    + return update
test_optimizer.py::test_tall_matrices_take_larger_steps[shape2-2]
    larger steps of tall matrices
    - update *= -group["lr"] * aspect
    + update *= -group["lr"]
test_optimizer.py::test_the_ranks_updates_add_up_to_that_of_one[2-False]
    every matrix orthogonalized by one of the ranks
    - own = slice(ranks.rank, None, ranks.world_size)
    + own = slice(0, None, ranks.world_size)
test_training.py::test_the_scale_of_the_rates[changes6-8-8.0-0.5]
    rates that reach 0 at the wall-clock cap
    - time_limit(state, s) - state.seconds
    + time_limit(state, s) + state.seconds
test_settings.py::test_calibration_has_its_part_of_the_cap
    calibration within the wall-clock cap
    -  - state.reserved)
    + )
test_training.py::test_the_reserve_is_kept_over_a_resume
    the calibration's reserve in a resumed run
    - in ("step", "seconds", "reserved")
    + in ("step", "seconds")
test_training.py::test_within_a_run_the_step_decides_not_the_clock
    the last step of a run as its latest checkpoint
    - return sorted(paths, key=lambda path: int(path.stem))
    + return sorted(paths, key=os.path.getmtime)
    later checkpoints that go once an earlier one is resumed
    - paths[: max(0, at - 1)] + paths[at + 1 :]
    + paths[: max(0, at - 1)]
test_training.py::test_a_training_goes_on_with_its_own_data
    a resume with the tokenizer of the training
    - self.tokenizer != state["tokenizer"]
    + not self
    a resume with the shards of the training
    - self.shards.get(name) != statement
    + name not in self.shards
    a resume that reads on where it would have read
    - state["step"] * s.train_batch_tokens < total
    + total
test_training.py::test_room_is_looked_for_before_it_is_needed
    a full disk that is found before the training
    - os.posix_fallocate(file.fileno(), 0, size)
    + pass
test_endings.py::test_a_full_disk_at_the_export
    the score of an artifact that no disk takes
    - lost.append(user_message(error))
    + raise
test_training.py::test_the_scale_of_the_rates[changes1-7-7.0-0.75]
    rates that fall over the last 3,000 steps
    - warmdown_iters, 1)
    + warmdown_iters, 1) * 2
test_training.py::test_the_warm_up_leaves_no_trace
    a warm-up that is undone
    - state.restore(before)
    + pass
test_training.py::test_int6_levels_as_numbers
    late training with weights fake-quantized to int6
    - .clamp_min(1e-12) / 31
    + .clamp_min(1e-12) / 127
    exact weights under the fake-quantized ones
    - w.data.copy_(before)
    + pass
test_training.py::test_the_gradient_is_that_of_the_mean_loss_of_the_whole_step[1]
    a step's loss whatever its micro-batches
    - state.model(inputs, targets).mean() * part
    + state.model(inputs, targets).mean()
test_data.py::test_a_step_reads_on_where_the_one_before_ended
    steps that read on where the one before ended
    - starts = step * s.train_batch_tokens
    + starts = 0 * s.train_batch_tokens
test_data.py::test_ids_above_the_vocabulary
    shards of another vocabulary that are refused
    - piece.max() >= self.vocab_size
    + piece.max() > self.vocab_size
test_training.py::test_what_the_system_quantises_and_when[pcll]
    fake quantization late in the training alone
    - late = scale < s.late_qat_threshold
    + late = scale < 1
test_frontier.py::test_the_span_recurs_after_a_third_of_the_training
    a recurrent span that recurs after a third of the training
    - set_recurrence(progress(state, s) >= RECURRENCE_START)
    + set_recurrence(progress(state, s) < RECURRENCE_START)
test_training.py::test_the_clock_counts_what_the_device_still_has_to_do
    the clock waits for the GPU before it pauses
    - torch.cuda.synchronize()
    + pass
test_data.py::test_a_cut_shard_is_refused
    truncated shards that are refused
    - header != [SHARD_MAGIC, SHARD_VERSION, count]
    + header[:2] != [SHARD_MAGIC, SHARD_VERSION]
test_settings.py::test_a_setting_of_the_baseline_alone_stops_the_run
    the baseline's settings that are refused
    - elif name in BASELINE_ONLY:
    + elif False:
""",
)

EXPORT = mutants_of(
    "train_gpt.py",
    r"""
test_codec.py::test_kmeans_is_twenty_iterations_of_lloyds[48]
    twenty iterations of k-means
    - KMEANS_ITERATIONS = 20
    + KMEANS_ITERATIONS = 5
    k-means from evenly spaced levels
    - np.linspace(float(ordered[0]), float(ordered[-1]), levels)
    + np.quantile(ordered, np.linspace(0, 1, levels))
test_settings.py::test_the_constants_of_the_system
    48 levels of the MLP
    - "mlp.down": Role("matrix", levels=48,
    + "mlp.down": Role("matrix", levels=64,
test_codec.py::test_numbers_of_levels[blocks.3.attn.v-80]
    80 levels of the values
    - "attn.v": Role("matrix", levels=80)
    + "attn.v": Role("matrix", levels=64)
test_codec.py::test_huffman_lengths_stay_within_the_limit_and_are_the_best_within_it
    a code for what never occurs
    - sorted((max(1, count)
    + sorted((count
test_codec.py::test_the_frame_is_what_zstd_22_makes_of_the_content
    zstd at its best level
    - 22, source_size
    + 3, source_size
test_codec.py::test_codec_of_each_tensor[huffman-4-1]
    an embedding in float16 beside Huffman codes
    - exact = name == "tok_emb" and s.codec == "huffman"
    + exact = False
    float32 for what float16 cannot hold
    - dtype = np.float16 if largest < HALF_LIMIT else np.float32
    + dtype = np.float16
test_codec.py::test_viterbi_search_finds_the_best_path
    the trellis path that is nearest
    - np.minimum(*branches, out=cost)
    + np.maximum(*branches, out=cost)
test_calibration.py::test_presets_export_what_the_verifier_reads[pcll]
    a trellis that other readers know
    - H0 = 0o45
    + H0 = 0o51
    rANS slots that other readers know
    - RANS_BITS = 14
    + RANS_BITS = 13
test_calibration.py::test_feedback_is_the_best_that_the_columns_to_come_can_do
    error feedback
    -  - error[:, done] @ gain.astype(np.float32)
    +
test_calibration.py::test_steps_are_the_inverse_root_of_the_damped_cost[1.0]
    steps that cost what QUANTISATION_NATS says
    - TRELLIS_GAIN = 1.3
    + TRELLIS_GAIN = 1.0
test_calibration.py::test_steps_are_at_most_twice_and_at_least_a_64th_of_the_root_mean_square
    steps of at most twice the weights
    - FINENESS = (-4, 24)
    + FINENESS = (-8, 24)
test_calibration.py::test_steps_are_the_inverse_root_of_the_damped_cost[1.0]
    finer steps in rows whose errors cost more
    - rows = moments.output_fisher / row_unit
    + rows = np.ones_like(moments.output_fisher)
test_codec.py::test_contexts_say_how_large_weights_are
    codes by how large a row's weights are
    - row_spreads = np.clip(rows - offset + steps.rows, -127, 127)
    + row_spreads = np.zeros_like(rows)
test_codec.py::test_trellis_stream_is_as_long_as_the_entropy_of_its_symbols[0.0]
    codes by how often a symbol occurs
    - counts * spare // (totals + 1)
    + spare // counts.shape[1]
test_codec.py::test_the_greatest_contexts_end_with_the_last_one_allowed[20]
    offsets that count contexts from the model's first one
    - t.offset -= base
    + pass
test_codec.py::test_fit_shrink_coarsens_only_what_is_too_large[trellis]
    code that counts towards the cap
    - budget = s.size_cap_bytes - code_bytes
    + budget = s.size_cap_bytes
test_codec.py::test_a_file_that_loses_a_bit_a_weight_an_octave_takes_two_tries[shrink]
    FIT=shrink that goes on until a file fits
    - if best and (s.fit
    + if (s.fit
test_codec.py::test_the_finest_steps
    FIT=fill that ends where finer steps buy nothing
    -  or coarse_enough == FINEST
    +
    FIT=fill that goes on after a finest file that is too large
    - or coarse_enough == FINEST
    + or octaves == FINEST
test_codec.py::test_export_by_hand
    a margin that doubles while nothing fits
    - (1 if best else 2**tries)
    + 1
    FIT=fill that fills the cap
    - FULL = 0.999
    + FULL = 0.9
    tries that stay within the bracket of those before
    - octaves = (max(too_fine, FINEST) + coarse_enough) / 2
    + pass
test_calibration.py::test_calibration_is_in_units_of_what_a_weight_may_cost
    a quantization that costs what QUANTISATION_NATS says
    - unit = 2 * s.quantisation_nats
    + unit = s.quantisation_nats
test_calibration.py::test_moments_add_up_over_tokens
    input Hessians in which a token weighs by its gradient
    - (inputs * squares.sum(dim=1, keepdim=True)).T @ inputs
    + inputs.T @ inputs
test_calibration.py::test_a_matrix_that_is_looked_up_costs_the_sum_of_both
    what an embedding's errors cost where it is looked up
    - alike = len(hessian) * looked_up
    + alike = 0 * looked_up
    bits for what is rare
    - Moments((rows + rows.sum() / tokens) / unit, hessian)
    + Moments(rows / unit, hessian)
test_calibration.py::test_a_table_is_charged_for_each_token_that_looks_it_up
    an embedding's moments that count every token
    - factors.looked_up.index_add_(0, x.flatten(), squares.mean(dim=-1))
    + factors.looked_up[x.flatten()] = squares.mean(dim=-1)
""",
)

EVALUATION = mutants_of(
    "train_gpt.py",
    r"""
test_evaluation.py::test_the_artifacts_weights_are_scored
    scores of the artifact's own weights
    - model.load_state_dict(weights)
    -     scores = {}
    + scores = {}
test_evaluation.py::test_the_headline_is_made_first_and_timed_alone
[off-final_pcll_sliding_exact-names0]
    the headline's time ends before the diagnostics
    -     log(f"eval_total_time:
    +     evaluator.score(model, PLAIN, s.train_seq_len)
    +     log(f"eval_total_time:
test_evaluation.py::test_context_of_the_system
    a stride of 32
    - eval_stride: int = setting(32
    + eval_stride: int = setting(64
test_evaluation.py::test_scores_equal_a_naive_loop[75-5-1]
    a last window of the full length
    - ends = batch if plain else batch.clamp(max=high)
    + ends = batch
    a last window that scores only what none before it has
    - fresh = (scored >= batch - stride) & (scored < high)
    + fresh = scored < high
    scores of the next token
    - nats_of(logits.detach(), self.tokens[positions + 1])
    + nats_of(logits.detach(), self.tokens[positions])
test_evaluation.py::test_ledger_refuses_scores_out_of_order[one twice at once]
    the ledger: each token is scored once
    - if not ((scored[positions] == 1) & in_order).all():
    + if not in_order.all():
test_evaluation.py::test_ledger_refuses_scores_out_of_order[skip within]
    the ledger: each token is scored after the one before it
    - if not ((scored[positions] == 1) & in_order).all():
    + if not (scored[positions] == 1).all():
test_evaluation.py::test_ledger_refuses_scores_out_of_order[skip]
    the ledger: documents come in order where they are not scored by themselves
    - (tokens[:-1] == BOS_ID) & by_document
    + tokens[:-1] == BOS_ID
test_evaluation.py::test_ledger_hands_out_nothing_that_is_not_scored
    the ledger: nothing is learned from before it is scored
    - if not self.scored[positions].all():
    + if False:
test_evaluation.py::test_trainer_gets_each_chunk_after_its_score_and_never_the_last
    a last chunk that nobody learns from
    - if trainer and high < count:
    + if trainer:
test_evaluation.py::test_scores_equal_a_naive_loop[90-16-64]
    plain scores of the next token
    - model(inputs, self.tokens[positions + 1]).detach()
    + model(inputs, inputs).detach()
test_evaluation.py::test_scores_equal_a_naive_loop[9-4-3]
    bits per byte, not per token
    - size = int(self.token_bytes[:count][scored].sum())
    + size = int(scored.sum())
test_evaluation.py::test_a_chunk_is_learned_by_the_formulas[sgd-score_first-0.05]
    adaptation at each layer's own rate
    - s.ttt_lr * role_of(name).ttt_lr_scale
    + s.ttt_lr
    half the rate for the MLP's input matrix in adaptation
    - "mlp.up": Role("matrix", levels=48, ttt_lr_scale=0.5)
    + "mlp.up": Role("matrix", levels=48)
    the gradient clip of adaptation
    - nn.utils.clip_grad_norm_(self.model.parameters(), TTT_GRAD_CLIP)
    + pass
    adaptation's rates that fall as a cosine
    - 0.5 * (1 + math.cos(math.pi * done))
    + 1 - done
test_evaluation.py::test_a_chunk_is_learned_by_the_formulas[adamw-train_then_score-1000000000.0]
    adaptation by AdamW with betas 0.9 and 0.999
    - betas=(0.9, 0.999), weight_decay=0.0
    + betas=(0.9, 0.95), weight_decay=0.0
    adaptation without weight decay
    - 0.999), weight_decay=0.0)
    + 0.999), weight_decay=1.0)
test_evaluation.py::test_a_chunk_is_learned_by_the_formulas[sgd-score_first-1000000000.0]
    adaptation by SGD with momentum 0.9
    - SGD(groups, momentum=0.9)
    + SGD(groups, momentum=0.0)
    TTT_EPOCHS passes over a chunk
    - (epochs if count else 0)
    + (1 if count else 0)
test_evaluation.py::test_scores_are_those_of_verify[5-16]
    a chunk without a whole sequence that teaches nothing
    - (epochs if count else 0)
    + epochs
test_evaluation.py::test_the_illegal_protocol_passes_over_everything_with_a_cosine
    one pass of entry 532's adaptation at each rate of its cosine
    - epoch / s.ttt_epochs, epochs=1)
    + epoch / s.ttt_epochs, epochs=s.ttt_epochs)
test_per_document.py::test_every_position_is_in_one_document
    adaptation per document: documents begin at each BOS
    - begins = tokens[:-1] == BOS_ID
    + begins = tokens[:-1] < 0
test_per_document.py::test_scores_are_those_of_verify[longer than the window-{}]
    adaptation per document: the longest context
    - needed = min(low + size, length)
    + needed = min(low + size, length // 2)
test_per_document.py::test_documents_of_like_length_are_one_batch_of_few_shapes
[longer than the window]
    adaptation per document: few static shapes
    - width = widths[bisect.bisect_left(widths, needed)]
    + width = needed
test_per_document.py::test_scores_are_those_of_verify[a single pair-{}]
    adaptation per document: padding that stays within the split
    - (start + first + self.offsets[:width]).minimum(end - 1)
    + start + first + self.offsets[:width]
test_per_document.py::test_scores_are_those_of_verify[of many lengths-{}]
    adaptation per document: documents of several lengths side by side
    - positions = positions.minimum(end - 1)
    + pass
    adaptation per document: learns
    - if low + size < longest:
    + if False:
    adaptation per document: with weight decay
    - betas=(0.0, 0.999), weight_decay=0.5
    + betas=(0.0, 0.999), weight_decay=0.0
test_per_document.py::test_no_later_token_and_no_other_document_moves_a_score
    adaptation per document: none learns from another
    - .repeat(rows, 1, 1)
    + .repeat(1, 1, 1)
test_per_document.py::test_each_turn_is_scored_before_it_is_learned_from
    adaptation per document: what is learned from comes from the ledger
    - _, targets = ledger.scored_tokens(positions)
    + targets = ledger.tokens[positions + 1]
test_per_document.py::test_afterwards_the_model_is_as_it_was
    adaptation per document: the model is left as it was
    - del p.adapter
    + pass
test_per_document.py::test_an_adapter_is_added_to_its_matrix[dtype1]
    adaptation per document: the scale of an adapter's outputs
    - b = scale[:, None] * b
    + pass
test_per_document.py::test_compiled_batches_have_all_their_rows
    adaptation per document: one graph for each width
    - rows = self.s.eval_batch_seqs if is_compiled(self.s) else len(documents)
    + rows = len(documents)
    adaptation per document: rows that only fill up a batch
    - scored = (positions < end) & real
    + scored = positions < end
test_data.py::test_bytes_as_numbers
    no byte for the space that begins a document
    - self.has_leading_space[after] & ~self.is_boundary[tokens[:-1]]
    + self.has_leading_space[after]
    one byte for a byte piece
    - 1 if sp.is_byte(i) else len(texts[i])
    + len(texts[i])
test_settings.py::test_where_the_entry_and_ours_differ
    ten epochs of entry 532's adaptation
    - ttt_epochs=10,
    + ttt_epochs=3,
""",
)

VERIFYING = mutants_of(
    "verify.py",
    r"""
test_verify.py::test_the_cap
    size: code counts
    - FAILED if total > CAP_BYTES else verdict
    + FAILED if held > CAP_BYTES else verdict
test_verify.py::test_a_size_with_other_files_beside_it_is_not_proven
    size: of what may be code or data nothing is proven
    - CONSISTENT if code.others else PROVEN
    + PROVEN
test_verify.py::test_a_changed_byte_fails_the_integrity
    integrity: a damaged artifact fails
    - yield Finding(FAILED, "integrity"
    + yield Finding(NOT_CHECKABLE, "integrity"
test_proof.py::test_weights_are_counted_before_they_are_decoded
    integrity: as many weights are decoded as are allowed
    - if count > MAX_WEIGHTS:
    + if count >= MAX_WEIGHTS:
test_verify.py::test_a_configuration_that_no_network_has_fails[vocab_size=321]
    config: a shape that does not fit fails
    - if shapes.get(name) != wanted[name]]
    + if name not in shapes]
test_verify.py::test_a_network_that_is_not_known_has_no_score[payload]
    config: a tensor that nothing asks for is no part of the network
    - for name in shapes if name not in wanted]
    + for name in shapes if False]
test_verify.py::test_a_network_that_is_not_known_has_no_score[experts=4]
    config: a setting that is not known may change the network
    - for name in c if name not in (*CONFIG, *UNUSED)]
    + for name in c if False]
test_verify.py::test_the_ends_of_what_is_computed
    config: the work of a window has a limit
    - if work * length > MAX_WORK:
    + if work > MAX_WORK:
test_verify.py::test_the_tokenizer_must_be_the_artifacts
    tokenizer: another one scores nothing
    - if model.is_file() and hashlib
    + if model.is_file() or hashlib
test_verify.py::test_shards_are_read_as_train_gpt_reads_them
    tokens: shards come by their numbers
    - range(min(shards), max(shards) + 1)
    + shards
    tokens: two shards of one number are refused
    - shards.setdefault(int(number), path) != path
    + shards.update({int(number): path})
test_data.py::test_verify_counts_the_same_bytes_from_decoded_text
    bytes: no space that begins a document, as the challenge counts
    -  - 1 - pieces[text[0]].startswith("▁")
    +  - 1
test_verify.py::test_bytes_of_broken_utf8_and_of_many_documents
    bytes: one for each byte piece
    - letter if tokenizer.is_byte(i) else i
    + i
    bytes: counted document by document
    - for start, end in documents(ids))
    + for start, end in [(0, len(ids))])
test_proof.py::test_the_official_split_is_known_by_tokens_and_bytes
    bytes: the challenge's split is known within 2e-4 of them
    - SPLIT_SLACK = 2e-4
    + SPLIT_SLACK = 2e-3
test_verify.py::test_all_proven_on_an_honest_artifact
    val_bpb: of the next token
    - window.first + 1 : window.end + 1
    + window.first : window.end
    val_bpb: with the context of the window
    - else max(0, end - length), end, first)
    + else first, end, first)
test_forward.py::test_same_logits
    val_bpb: of the network with exclusive attention
    - y = y - (y * own).sum(-1, keepdim=True) * own
    + y = y + 0 * own
test_verify.py::test_a_prediction_is_a_distribution_that_rests_on_earlier_tokens_alone
    val_bpb: of no later token
    - values, is_causal=True)
    + values, is_causal=False)
    val_bpb: of no document before
    - first = (tokens == BOS) & self.config["bos_reset"]
    + first = (tokens == BOS) & False
test_proof.py::test_scores_that_are_no_number_fail
    val_bpb: a score that is no number fails
    - if not math.isfinite(self.nats):
    + if False:
test_verify.py::test_train_then_score_is_labelled
    adaptation: what is not legal fails
    - FAILED if subject.options.ttt else SUSPICION
    + SUSPICION
test_verify.py::test_adaptation_replay[sgd]
    adaptation: replayed at each layer's own rate
    - "mlp.down": 3.0
    + "mlp.down": 1.0
    adaptation: replayed with its gradient clip
    - self.config["ttt_grad_clip"])
    + self.config["ttt_grad_clip"] * 1e9)
test_per_document.py::test_scores_are_those_of_verify[of many lengths-{}]
    adaptation per document: replayed with the embedding as it was
    - sums["head"] = sums.pop("tok_emb")
    + sums["head"] = sums["tok_emb"]
    adaptation per document: replayed without a look across a BOS
    - max(start, low + c["document_tokens"]
    + max(0, low + c["document_tokens"]
test_evaluation.py::test_scores_are_those_of_verify[16-32]
    windows: those that do not overlap end with a short one
    - Window(first if config["eval_stride"] == length else max(0, end - length), end, first)
    + Window(max(0, end - length), end, first)
test_per_document.py::test_where_rounding_may_decide_nothing_is_proof_against_a_score
[0.0011-NOT CHECKABLE]
    claim: no proof where rounding may decide
    - if not run.steady:
    + if False:
    prefix: bytes of text are proof at any rate
    - sure = run.steady or not same_text
    + sure = run.steady
test_verify.py::test_a_claim_may_be_off_by_as_much_as_bfloat16_is
    claim: one that is too high fails, too
    - judge_claim(subject, abs(off) <= allowed, runs)
    + judge_claim(subject, off >= -allowed, runs)
    claim: off by no more than rounding explains
    - TOLERANCE = 0.0005
    + TOLERANCE = 0.005
    claim: off by as much as rounding explains
    - return TOLERANCE + DRIFT / math.sqrt(count)
    + return TOLERANCE
test_proof.py::test_a_submitted_score_is_of_the_challenges_split
    claim: one of another split contradicts nothing
    -     if not ours:
    +     if False:
test_proof.py::test_a_claim_is_not_judged_by_a_pass_that_was_not_finished
    claim: a pass that was not finished may be the claimed one
    -     for run in runs:
    -         if run.done < subject.targets:
    +     for run in runs:
    +         if False:
test_proof.py::test_a_log_may_be_off_by_as_much_as_bfloat16_is
    prefix: a log is off by no more than rounding explains
    - if not abs(bpb - here) <= allowed:
    + if not abs(bpb - here) <= 2 * allowed:
test_proof.py::test_a_log_that_contradicts_itself[the result is less than its part]
    prefix lines: fewer nats for more positions fail
    - or line.nats < before.nats - rounding
    + or False
test_proof.py::test_a_claim_ten_percent_too_low_is_refuted_by_150_windows
    sample: an interval that holds honest claims
    - ERRORS_99 = 2.95
    + ERRORS_99 = 1.5
test_proof.py::test_fewer_than_16_windows_state_no_interval
    sample: no interval of few windows
    - MIN_WINDOWS = 16
    + MIN_WINDOWS = 8
test_proof.py::test_ctrl_c_leaves_what_was_found
    Ctrl-C leaves what was found
    - found.append(unscored("val_bpb", "stopped by Ctrl-C"))
    + found.clear()
""",
)
VERIFYING += mutants_of(
    "records/report.py",
    r"""
test_surroundings.py::test_ctrl_c_in_a_check
    Ctrl-C is a sentence of its own
    -         print(f"{program}: {STOPPED}", file=sys.stderr)
    +         print(f"{program}: KeyboardInterrupt", file=sys.stderr)
test_proof.py::test_the_first_line_says_which_score_it_is_of
    the first line says which score it is of
    - parts += dict.fromkeys(finding.says
    + parts += dict.fromkeys(finding.check
""",
)

DECODING = mutants_of(
    "decode_artifact.py",
    r"""
test_attacks.py::test_attack_is_refused_in_a_sentence[weights_of_another_crc32]
    weights that are those the file was made of
    - type(stated) is int and stated == crc,
    + True,
test_attacks.py::test_attack_is_refused_in_a_sentence[frames_with_a_large_window]
    a window that every reader has memory for
    - about.window_size <= MAX_WINDOW,
    + True,
test_attacks.py::test_refused_for_its_own_reason[holes_and_overlaps-bytes follow the last part]
    refused: bytes after the last part
    - require(not left, f"{left} bytes follow
    + require(True, f"{left} bytes follow
test_attacks.py::test_refused_for_its_own_reason[huffman_bits_left_over-not filled up with zeros]
    refused: bits behind the last code that are not zeros
    - not (self.windows[-2:-1] << (int(self.ends[-1]) % 16 or 16)).any()
    + True
test_attacks.py::test_refused_for_its_own_reason
[names_twice_or_out_of_order-comes out of order or twice]
    refused: two tensors of one name, or names out of order
    - require(raw > before,
    + require(True,
test_attacks.py::test_refused_for_its_own_reason
[floats_that_are_not_finite-tensor . has a value that is not finite]
    refused: values that are NaN or infinite
    - require(bool(np.isfinite(values).all()),
    + require(True,
test_attacks.py::test_refused_for_its_own_reason
[steps_that_overflow_or_vanish-column factor that is zero, subnormal or infinite]
    refused: column factors that are zero or subnormal
    - bool((factors >= 2.0**-126).all() and np.isfinite(factors).all())
    + True
test_attacks.py::test_refused_for_its_own_reason[codes_that_are_over_or_under_full-is under-full]
    refused: codes that are under-full
    - require(kraft >= 1 << LONGEST_CODE,
    + require(True,
test_attacks.py::test_refused_for_its_own_reason
[centroids_that_are_not_a_codebook-are not strictly increasing]
    refused: levels that are equal
    - bool((np.diff(centroids) > 0).all())
    + True
test_attacks.py::test_refused_for_its_own_reason[states_that_never_end-does not end at 2.16]
    refused: states that do not end at 2^16
    - require(bool((self.states == RANS_L).all()),
    + require(True,
test_attacks.py::test_refused_for_its_own_reason
[frequencies_that_do_not_add_up-add up to [0-9]+ and not to 16384 or 0]
    refused: frequencies that do not add up
    - total in (0, RANS_M)
    + True
test_attacks.py::test_refused_for_its_own_reason
[config_of_wrong_types-neither a string, a number nor a boolean]
    refused: a config of more than plain values
    - type(value) in (str, int, float, bool),
    + True,
test_attacks.py::test_refused_for_its_own_reason[frame_with_dictionary-asks for dictionary]
    refused: references to other files
    - require(about.dict_id == 0,
    + require(True,
test_attacks.py::test_refused_for_its_own_reason[huge_shapes-elements, above the limit of]
    a small file that asks for much memory is refused
    - elements <= limit,
    + True,
""",
)

RECORDS = mutants_of(
    "records/check.py",
    r"""
test_verify_records.py::test_both_sides_of_a_limit
[evaluation time-scored=600100 -> FAILED 600.1]
    times: a claimed pass over 600 s fails
    - LIMIT_S = 600.0  # for training
    + LIMIT_S = 601.0  # for training
test_verify_records.py::test_both_sides_of_a_limit
[training time-world=4 trained=1202000 -> CONSISTENT 1202]
    times: the seconds of other GPUs count together
    - seconds * (world or WORLD_SIZE) <=
    + seconds * WORLD_SIZE <=
test_folders.py::test_a_kind_of_folder[adaptation before scoring]
    times: adaptation before the export breaks one of both limits
    - evaluation = self.judge(log, seconds + scored)
    + evaluation = self.judge(log, scored)
test_verify_records.py::test_both_sides_of_a_limit
[size-script=NOISE model=15940001 bytes_total=null -> FAILED 16000001]
    size: over the cap with the script as it lies here fails
    - CAP_BYTES = 16_000_000
    + CAP_BYTES = 16_000_001
test_verify_records.py::test_both_sides_of_a_limit[split-ratio=1.0051 -> SUSPICION 151850508]
    split: its bytes are those of the text
    - SAME_SPLIT = 0.005
    + SAME_SPLIT = 0.006
test_verify_records.py::test_both_sides_of_a_limit
[split-ratio=1 tokens=61401415 -> FAILED 149569198]
    split: a part of it fails
    - elif tokens < 0.99 * whole
    + elif tokens < 0.98 * whole
test_verify_records.py::test_both_sides_of_a_limit
[accepted scores-lines=[1.0564] val_bpb=1.0564 -> SUSPICION 1.0564]
    val_bpb: below every accepted score is suspect
    - BEST_ACCEPTED = 1.0565
    + BEST_ACCEPTED = 1.05
test_folders.py::test_a_kind_of_folder[the best of three]
    val_bpb: the best of several seeds is suspect
    - if others and max(
    + if False and max(
test_verify_records.py::test_what_is_said_of
[val_bpb-logs=ALONE val_bpb=1.119 mean_val_bpb=1.1193 -> SUSPICION: by its own numbers it is 1.1193]
    val_bpb: one below the stated mean is suspect
    - < mean - self.claim < 0.1]
    + < mean - self.claim < 0.0]
test_verify_records.py::test_what_is_said_of
[val_bpb-logs=CLAIMED val_bpb=1.1111 -> FAILED: no line and no mean of the logs]
    val_bpb: one below every claimed log fails
    - return bool(self.sizes & self.numbers) and
    + return False and
test_verify_records.py::test_significance
    statistics: a record is sure at p < 0.01
    - p < RECORD_P else
    + p < 1 else
    statistics: a record is better by 0.005 nats
    - RECORD_NATS = 0.005
    + RECORD_NATS = 0.0005
""",
)
RECORDS += mutants_of(
    "records/report.py",
    r"""
test_folder_bounds.py::test_a_report_of_three_runs_is_one_screen
    exit code 1 where a check failed
    - failed = int(answer_of(report) == FAILED)
    + failed = 0
test_folders.py::test_a_kind_of_folder[neither tokens nor losses]
    an OK needs all its parts
    - if SUSPICION in verdicts or missing(report) else
    + if SUSPICION in verdicts else
""",
)
RECORDS += mutants_of(
    "records/logs.py",
    r"""
test_verify_records.py::test_what_is_said_of
[val_bpb-logs=CLAIMED val_bpb=1.1012 -> FAILED: of a line that its log labels NOT LEGAL]
    val_bpb: what a log labels NOT LEGAL is no score
    - kind = "illegal"
    + kind = "final"
test_odd_statements.py::test_a_statement
    times: validations during training are no evaluation
    - self.passes.clear()
    + pass
    logs: what a terminal writes over counts
    - COLOUR.sub("", text).split("\r")
    + COLOUR.sub("", text).split("\0")
    logs: bytes in any writing
    - return int(re.sub("[^0-9]", "", count or "") or 0)
    + return int(re.findall("[0-9]+", count or "0")[0])
test_odd_statements.py::test_the_source_in_a_log_states_nothing
    logs: the source in a log states nothing
    - if not in_source:
    + if True:
test_odd_statements.py::test_what_launchers_and_terminals_add
    logs: what launchers add is no part of a line
    - part = PREFIX.sub("", part).rstrip()
    + part = part.rstrip()
test_odd_statements.py::test_an_evaluation_has_a_log_of_its_own
    logs: an evaluation's log is joined with its training's
    - facts or own[0].facts[name]
    + facts
""",
)
RECORDS += mutants_of(
    "records/code.py",
    r"""
test_code_size.py::test_what_a_script_imports_or_names_counts
    size: files that the script imports count
    - and names & modules
    + and False
    size: files that the script names count
    - path.name in literals or
    + False or
test_code_size.py::test_a_packed_script_is_unpacked_and_searched[xz in base85]
    patterns: packed scripts are searched
    - if len(texts) <= MAX_PACKED else
    + if False else
test_folder_bounds.py::test_a_file_is_read_whole_or_not[train_gpt.py-1000000]
    patterns: a script that is not read is named
    - return not programs or bool(
    + return bool(programs) and bool(
test_code_size.py::test_what_stays_packed_is_named
    a program that is not whole is not unpacked
    - if decompressor.eof and not decompressor.unused_data and
    + if
test_code_size.py::test_a_pattern_and_its_honest_likeness[trains on the validation shards]
    patterns: what is switched off is no suspicion
    - not in ("", "0",
    + not in ("",
""",
)
RECORDS += mutants_of(
    "records/files.py",
    r"""
test_folder_bounds.py::test_only_regular_files_of_the_folder_are_opened
    files: nothing outside of the folder is opened
    - return regular and target.is_relative_to(root)
    + return regular
""",
)
RECORDS += mutants_of(
    "records/pack.py",
    r"""
test_pack.py::test_two_logs_of_a_seed
    a record of two runs of one seed is refused
    - if before.seed == run.seed:
    + if False:
test_pack.py::test_logs_that_differ[MATRIX_LR, CODEC.]
    a record of runs with other settings is refused
    - if differ := [what for what in first | own if first.get(what) != own.get(what)]:
    + if differ := []:
test_pack.py::test_the_cap_and_the_rounding_of_a_score
    a record over the cap with its code is refused
    - if total > CAP_BYTES:
    + if run.results["artifact_bytes"] > CAP_BYTES:
    a score that its loss does not make is refused
    - if abs(made - bpb) >= 1e-6:
    + if abs(made - bpb) >= 2e-6:
test_pack.py::test_the_10_minute_track
    a record with too long an evaluation is refused
    - evaluation > LIMIT_S
    + evaluation > 2 * LIMIT_S
    calibration counts as training
    - if train + calibration > LIMIT_S + STEP_S
    + if train > LIMIT_S + STEP_S
test_pack.py::test_what_differs_between_segments_is_stated
    a record that was begun on other hardware is refused
    - "H100" not in s.gpu for s in run.segments):
    + "H100" not in s.gpu for s in run.segments[-1:]):
    a record says on what it was begun
    - return ", then ".join(value for value, _ in groupby(values))
    + return list(values)[-1]
test_pack.py::test_a_log
    a record whose source is not the code is refused
    - if code_bytes != own_bytes:
    + if False:
    a score that is not the headline is refused
    - if found["headline"] != [f"headline: {finals[0]}"]:
    + if False:
test_pack.py::test_an_artifact_is_bound_to_its_log
    a record with another run's artifact of the same size is refused
    - if sha256 not in named:
    + if False:
test_pack.py::test_an_existing_folder_stays_as_it_is
    a record that is there already stays
    - if os.path.lexists(folder):
    + if False:
test_pack.py::test_three_seeds_make_a_folder_that_verifies
    a record's score is the mean of its seeds
    - val_bpb=round(mean(columns["val_bpb"]), 8),
    + val_bpb=min(columns["val_bpb"]),
""",
)
RECORDS += mutants_of(
    "records/wrap.py",
    r"""
test_wrap.py::test_it_is_small_and_comes_back_to_the_letter
    a wrapped script is small
    - preset=9 | lzma.PRESET_EXTREME
    + preset=0
    what was wrapped comes back
    - return program
    + return source
""",
)

MUTANTS = [*MODEL, *TRAINING, *EXPORT, *EVALUATION, *VERIFYING, *DECODING, *RECORDS]

# ---- Running them


def copy_of_the_repository(folder: Path) -> None:
    """The tracked files, as they are in the working tree."""
    command = ["git", "ls-files", "-z", "--cached"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@contextmanager
def applied(mutant: Mutant, folder: Path) -> Iterator[None]:
    """The folder with the mutant in it, and afterwards without."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def pytest_in(folder: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """The verdict on what was changed there, and what pytest says."""
    own = {"PYTHONDONTWRITEBYTECODE": "1"}  # a stale file of the same size and second would be run
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | own
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    names = [f"tests/{name}" for name in tests]
    try:
        done = subprocess.run(
            [*command, *names],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return "TIMEOUT", f"no end after {limit:g} s"
    if done.returncode == 0:
        return SURVIVED, "passes all the same"
    return VERDICTS.get(done.returncode, "BROKEN"), done.stdout + done.stderr


def run(mutants: list[Mutant]) -> int:
    """Prints a line for each and the counts; returns the exit code."""
    began = time.monotonic()
    counts = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy_of_the_repository(folder)
        tests = sorted({mutant.test for mutant in mutants})
        verdict, said = pytest_in(folder, tests, LIMIT_S + 10 * len(tests))
        if verdict != SURVIVED:
            print(f"Without a change the tests do not pass:\n{said}", file=sys.stderr)
            return 2

        for mutant in mutants:
            start = time.monotonic()
            with applied(mutant, folder):
                verdict, said = pytest_in(folder, [mutant.test], LIMIT_S)
            counts[verdict] += 1
            seconds = time.monotonic() - start
            print(f"{verdict:<8} {seconds:5.1f} s  {mutant.file}: {mutant.breaks}", flush=True)
            if verdict != KILLED:
                print(f"{'':18}tests/{mutant.test}: {said.strip().splitlines()[-1]}", flush=True)

    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{len(mutants)} mutants: {words}; {time.monotonic() - began:.0f} s")
    return int(counts[KILLED] < len(mutants))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("mutants.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="part of a mutant's words")
    only = parser.parse_args(argv).only.lower()
    chosen = [m for m in MUTANTS if only in f"{m.file} {m.breaks} {m.test}".lower()]
    if not chosen:
        print(f"There is no mutant with {only!r} in its file, breach or test.", file=sys.stderr)
        return 2
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
