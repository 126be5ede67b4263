// The stages of one step of each cell: formulas, the same with one unit's numbers, and the vectors they are of.

/** A number inside a formula: as many digits as can be read, in brackets where it would clash with a sign. */
function n(value, bracket = true) {
  if (value === null || value === undefined) return "\\text{–}";
  const text = Math.abs(value) < 1e-4 && value !== 0 ? tiny(value) : value.toFixed(4);
  return bracket && value < 0 ? `(${text})` : text;
}

function tiny(value) {
  const [digits, power] = value.toExponential(2).split("e");
  return `${digits}\\cdot 10^{${Number(power)}}`;
}


function gate(step, name, letter, squash, j) {
  const part = step.gates[name];
  const f = squash === "sigma" ? "\\sigma" : "\\tanh";
  return {
    tex: `${letter}_t = ${f}(W_${letter}\\,x_t + U_${letter}\\,h_{t-1} + b_${letter})`,
    numbers: `${letter}_t[${j}] = ${f}(${n(part.from_input[j], false)} + ${n(part.from_hidden[j])} + ${n(part.bias[j])})`,
    result: `${letter}_t[${j}] = ${f}(${n(part.preactivation[j], false)}) = ${n(part.value[j], false)}`,
  };
}

const vector = (name, values, signed = true) => ({ name, values, signed });

const joined = (step, j) => ({
  title: "What comes in",
  says: "The step sees the word's vector x and the hidden state the previous step left behind, as one long vector.",
  formulas: [{ tex: "[\\,h_{t-1},\\ x_t\\,]", numbers: `h_{t-1}[${j}] = ${n(step.h_prev[j], false)}${step.c_prev ? `,\\quad c_{t-1}[${j}] = ${n(step.c_prev[j], false)}` : ""}` }],
  vectors: [vector("hₜ₋₁", step.h_prev), { ...vector("xₜ", step.x), free: true }, ...(step.c_prev ? [vector("cₜ₋₁", step.c_prev)] : [])],
  lit: ["join", "h0", "x"],
});

function lstm(step, j) {
  const g = (name) => step.gates[name].value;
  return [
    joined(step, j),
    {
      title: "Forget",
      says: "The forget gate says how much of each cell is kept: 1 keeps all, 0 erases. It multiplies the old cell state, number by number.",
      formulas: [
        gate(step, "forget", "f", "sigma", j),
        { tex: "f_t \\odot c_{t-1}", numbers: `${n(g("forget")[j], false)} \\cdot ${n(step.c_prev[j])} = ${n(step.kept[j], false)}` },
      ],
      vectors: [vector("fₜ", g("forget"), false), vector("cₜ₋₁", step.c_prev), vector("fₜ ⊙ cₜ₋₁", step.kept)],
      lit: ["join", "f", "keep", "c0"],
    },
    {
      title: "Write",
      says: "The candidate is what this word would write; the input gate says how much of it is written.",
      formulas: [
        gate(step, "input", "i", "sigma", j),
        gate(step, "candidate", "g", "tanh", j),
        { tex: "i_t \\odot g_t", numbers: `${n(g("input")[j], false)} \\cdot ${n(g("candidate")[j])} = ${n(step.written[j], false)}` },
      ],
      vectors: [vector("iₜ", g("input"), false), vector("gₜ", g("candidate")), vector("iₜ ⊙ gₜ", step.written)],
      lit: ["join", "i", "g", "write"],
    },
    {
      title: "Add",
      says: "What was kept and what is written are added. This sum is the long path: along it a gradient is only multiplied by the forget gate.",
      formulas: [{ tex: "c_t = f_t \\odot c_{t-1} + i_t \\odot g_t", numbers: `c_t[${j}] = ${n(step.kept[j], false)} + ${n(step.written[j])} = ${n(step.cell_state[j], false)}` }],
      vectors: [vector("fₜ ⊙ cₜ₋₁", step.kept), vector("iₜ ⊙ gₜ", step.written), vector("cₜ", step.cell_state)],
      lit: ["keep", "write", "add", "c"],
    },
    {
      title: "Show",
      says: "The cell state is squashed, and the output gate says how much of it the rest of the network sees.",
      formulas: [
        gate(step, "output", "o", "sigma", j),
        { tex: "\\tanh(c_t)", numbers: `\\tanh(${n(step.cell_state[j], false)}) = ${n(step.shown[j], false)}` },
        { tex: "h_t = o_t \\odot \\tanh(c_t)", numbers: `h_t[${j}] = ${n(g("output")[j], false)} \\cdot ${n(step.shown[j])} = ${n(step.hidden[j], false)}` },
      ],
      vectors: [vector("oₜ", g("output"), false), vector("tanh(cₜ)", step.shown), vector("hₜ", step.hidden)],
      lit: ["join", "c", "tanh", "o", "out", "h"],
    },
  ];
}

function gru(step, j) {
  const g = (name) => step.gates[name].value;
  const c = step.gates.candidate;
  return [
    joined(step, j),
    {
      title: "Reset",
      says: "The reset gate says how much of the past the candidate may see.",
      formulas: [gate(step, "reset", "r", "sigma", j)],
      vectors: [vector("rₜ", g("reset"), false), vector("hₜ₋₁", step.h_prev)],
      lit: ["join", "r"],
    },
    {
      title: "Propose",
      says: "The candidate is what would replace the past: the word, and as much of the past as was let through.",
      formulas: [
        {
          tex: "n_t = \\tanh(W_n\\,x_t + r_t \\odot (U_n\\,h_{t-1} + b'_n) + b_n)",
          numbers: `n_t[${j}] = \\tanh(${n(c.from_input[j], false)} + ${n(c.from_hidden[j])} + ${n(c.bias[j])})`,
          result: `n_t[${j}] = \\tanh(${n(c.preactivation[j], false)}) = ${n(c.value[j], false)}`,
        },
      ],
      vectors: [vector("rₜ", g("reset"), false), vector("nₜ", c.value)],
      lit: ["join", "r", "n"],
    },
    {
      title: "Weigh",
      says: "The update gate says how much of each number is kept: 1 keeps all, 0 replaces all.",
      formulas: [
        gate(step, "update", "u", "sigma", j),
        { tex: "u_t \\odot h_{t-1}", numbers: `${n(g("update")[j], false)} \\cdot ${n(step.h_prev[j])} = ${n(step.kept[j], false)}` },
        { tex: "(1-u_t) \\odot n_t", numbers: `(1 - ${n(g("update")[j], false)}) \\cdot ${n(c.value[j])} = ${n(step.written[j], false)}` },
      ],
      vectors: [vector("uₜ", g("update"), false), vector("uₜ ⊙ hₜ₋₁", step.kept), vector("(1−uₜ) ⊙ nₜ", step.written)],
      lit: ["join", "u", "keep", "write", "n"],
    },
    {
      title: "Add",
      says: "Kept and new are added; the sum is both what is remembered and what is shown.",
      formulas: [{ tex: "h_t = u_t \\odot h_{t-1} + (1-u_t) \\odot n_t", numbers: `h_t[${j}] = ${n(step.kept[j], false)} + ${n(step.written[j])} = ${n(step.hidden[j], false)}` }],
      vectors: [vector("uₜ ⊙ hₜ₋₁", step.kept), vector("(1−uₜ) ⊙ nₜ", step.written), vector("hₜ", step.hidden)],
      lit: ["keep", "write", "add", "h"],
    },
  ];
}

function rnn(step, j) {
  const c = step.gates.candidate;
  const f = step.cell === "rnn_relu" ? "\\mathrm{relu}" : "\\tanh";
  return [
    joined(step, j),
    {
      title: "Sum",
      says: "The word and the past are each multiplied by a matrix, and added. Nothing protects the past: it is rewritten at every step.",
      formulas: [{ tex: "z_t = W\\,x_t + U\\,h_{t-1} + b", numbers: `z_t[${j}] = ${n(c.from_input[j], false)} + ${n(c.from_hidden[j])} + ${n(c.bias[j])} = ${n(c.preactivation[j], false)}` }],
      vectors: [vector("W xₜ", c.from_input), vector("U hₜ₋₁", c.from_hidden), vector("zₜ", c.preactivation)],
      lit: ["join", "z"],
    },
    {
      title: "Squash",
      says: "The sum is squashed; where it lies far out, hardly any gradient comes back through.",
      formulas: [{ tex: `h_t = ${f}(z_t)`, numbers: `h_t[${j}] = ${f}(${n(c.preactivation[j], false)}) = ${n(step.hidden[j], false)}` }],
      vectors: [vector("zₜ", c.preactivation), vector("hₜ", step.hidden)],
      lit: ["z", "squash", "h"],
    },
  ];
}

export const stages = (step, j) => (step.cell === "lstm" ? lstm : step.cell === "gru" ? gru : rnn)(step, j);

/** The cell as a drawing: nodes with places and one unit's numbers, and what leads where. */
export function drawing(step, j) {
  const g = (name) => step.gates[name]?.value[j];
  const node = (id, x, y, label, value, kind = "gate") => ({ id, x, y, label, value, kind });
  const join = [node("h0", 52, 186, "hₜ₋₁", step.h_prev[j], "state"), node("x", 52, 240, "xₜ", null, "state"), node("join", 120, 213, "[h, x]", null, "op")];
  const into = [["h0", "join"], ["x", "join"]];
  if (step.cell === "lstm")
    return {
      nodes: [
        ...join,
        node("c0", 52, 44, "cₜ₋₁", step.c_prev[j], "state"),
        node("f", 200, 140, "f", g("forget")),
        node("keep", 200, 44, "×", step.kept[j], "op"),
        node("i", 290, 160, "i", g("input")),
        node("g", 370, 160, "g", g("candidate")),
        node("write", 330, 104, "×", step.written[j], "op"),
        node("add", 330, 44, "+", null, "op"),
        node("c", 600, 44, "cₜ", step.cell_state[j], "state"),
        node("tanh", 500, 104, "tanh", step.shown[j], "op"),
        node("o", 450, 186, "o", g("output")),
        node("out", 500, 186, "×", null, "op"),
        node("h", 600, 186, "hₜ", step.hidden[j], "state"),
      ],
      edges: [...into, ["join", "f"], ["join", "i"], ["join", "g"], ["join", "o"], ["c0", "keep"], ["f", "keep"], ["keep", "add"], ["i", "write"], ["g", "write"], ["write", "add"], ["add", "c"], ["add", "tanh"], ["tanh", "out"], ["o", "out"], ["out", "h"]],
    };
  if (step.cell === "gru")
    return {
      nodes: [
        ...join.slice(1),
        node("h0", 52, 44, "hₜ₋₁", step.h_prev[j], "state"),
        node("r", 210, 160, "r", g("reset")),
        node("u", 320, 120, "u", g("update")),
        node("n", 420, 190, "n", g("candidate")),
        node("keep", 320, 44, "×u", step.kept[j], "op"),
        node("write", 470, 120, "×(1−u)", step.written[j], "op"),
        node("add", 470, 44, "+", null, "op"),
        node("h", 600, 44, "hₜ", step.hidden[j], "state"),
      ],
      edges: [["h0", "join"], ["x", "join"], ["join", "r"], ["join", "u"], ["join", "n"], ["r", "n"], ["h0", "keep"], ["u", "keep"], ["u", "write"], ["n", "write"], ["keep", "add"], ["write", "add"], ["add", "h"]],
    };
  return {
    nodes: [...join, node("z", 270, 213, "z", step.gates.candidate.preactivation[j]), node("squash", 420, 213, step.cell === "rnn_relu" ? "relu" : "tanh", null, "op"), node("h", 600, 213, "hₜ", step.hidden[j], "state")],
    edges: [...into, ["join", "z"], ["z", "squash"], ["squash", "h"]],
  };
}

