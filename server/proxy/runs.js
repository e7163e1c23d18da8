// Counts exactly in how many ways a grammar or a pattern matches a run of one character. Vocabularies have tokens that are
// such runs ("--------", blanks), and llama.cpp follows each way through them separately. Ambiguity of any kind
// (overlapping choices, adjacent loops, recursion) multiplies these ways. server/limits/grammar_runs.py counts the same.
import {Refused, atMost, mostOf} from 'limits.js';
import {characters, eachChoice, ranges} from 'beginnings.js';

const RUN = 64; // characters
const STEPS = 150000; // steps of counting, after which a text is refused as too large
const NOTHING = [1]; // counts: [n] is the ways to match n characters completely; without trailing zeros

function checkRuns(rules, kind) {
    const atoms = new Map(), chars = new Set();
    for (const options of rules.values()) {
        eachChoice(options, (choice) => choice.forEach((sequence) => sequence.forEach((part) => {
            if (part.kind === 'char' && !atoms.has(part.first)) atoms.set(part.first, atom(part.first));
        })));
    }
    for (const {found} of atoms.values()) for (const [low, high] of found) chars.add(low).add(high + 1);
    const steps = new Steps(), seen = new Set(); // characters that match the same texts and classes have the same counts
    for (const char of chars) {
        steps.take(atoms.size);
        const lengths = new Map();
        for (const [first, {found, length}] of atoms) {
            if (found.some(([low, high]) => low <= char && char <= high)) lengths.set(first, length);
        }
        const matched = [...lengths.keys()].join('\n');
        if (!lengths.size || seen.has(matched)) continue;
        seen.add(matched);
        new Runs(rules, kind, lengths, steps).check();
    }
}

// The characters of which a text or class is a run, and the length of that run.
function atom(first) {
    if (first[0] !== '"') return {found: ranges(first), length: 1};
    const points = characters(first.slice(1, -1)).map(({value}) => value);
    return {found: points.every((point) => point === points[0]) ? [[points[0], points[0]]] : [], length: points.length};
}

class Steps {
    constructor() {
        this.left = STEPS;
    }

    take(count) {
        if ((this.left -= count) < 0) {
            throw new Refused('The grammar is too large to count its ways.', 'Use fewer parts or characters.');
        }
    }
}

// The counts for one character; recursive rules are counted until a fixed point is reached.
class Runs {
    constructor(rules, kind, lengths, steps) {
        this.rules = rules;
        this.kind = kind;
        this.most = mostOf(`${kind}_run_ways`);
        this.lengths = lengths; // of texts and classes that match the character
        this.steps = steps;
        this.before = new Map(); // recursive rules → their counts in the previous iteration
    }

    check() {
        for (;;) {
            this.known = new Map(); // rule → its ways; null: being counted
            this.met = new Map(); // recursive rules → whether they are still being counted
            for (const name of this.rules.keys()) this.ofRule(name);
            const found = new Map([...this.met.keys()].map((name) => [name, this.known.get(name).done]));
            if ([...found].every(([name, done]) => String(done) === String(this.before.get(name) || []))) return;
            this.before = found;
        }
    }

    // `done`: ways to match a part completely; `again`: ways to reach a recursive call in it of a rule being counted.
    ofRule(name) {
        if (!this.known.has(name)) {
            this.known.set(name, null);
            this.known.set(name, this.counted(name));
        }
        const found = this.known.get(name);
        if (found) return found;
        this.met.set(name, true);
        return {done: this.before.get(name) || [], again: NOTHING};
    }

    // Counts a rule; if it is recursive, also the ways through repeated recursion.
    counted(name) {
        const ways = this.ofOptions(this.rules.get(name));
        if (this.met.get(name)) {
            this.met.set(name, false);
            this.repeated({done: ways.again, again: []}, 0, 0);
        }
        return [...this.met.values()].includes(true) ? ways : {done: ways.done, again: []};
    }

    ofOptions(options) {
        let done = [], again = [];
        for (const sequence of options) {
            const ways = this.ofSequence(sequence);
            done = this.held(sum(done, ways.done));
            again = this.held(sum(again, ways.again));
        }
        return {done, again};
    }

    // Joins the parts. `fresh` is the same count for runs that begin anywhere in the sequence.
    ofSequence(sequence) {
        let done = NOTHING, fresh = NOTHING, again = [];
        for (const part of sequence) {
            const ways = this.ofPart(part);
            again = this.held(sum(again, this.joined(done, ways.again)));
            this.joined(fresh, ways.again);
            fresh = this.joined(fresh, ways.done);
            if (!fresh[0]) fresh = [1, ...fresh.slice(1)];
            done = this.joined(done, ways.done);
        }
        return {done, again};
    }

    ofPart(part) {
        this.steps.take(1);
        const ways = part.kind === 'group' ? this.ofOptions(part.options)
            : part.kind === 'ref' ? this.ofRule(part.name)
            : {done: part.isEmpty ? NOTHING : this.ofLength(this.lengths.get(part.first)), again: []};
        return part.least === 1 && part.most === 1 ? ways : this.repeated(ways, part.least, part.most);
    }

    ofLength(length) {
        return length <= RUN ? [...Array(length).fill(0), 1] : [];
    }

    repeated(ways, least, most) {
        // an empty iteration adds no way
        const one = least === 0 && most === 1 ? ways.done : [0, ...ways.done.slice(1)];
        let power = NOTHING, done = least === 0 ? NOTHING : [], again = [];
        for (let times = 1; power.some((count) => count) && (!most || times <= most); times++) {
            again = this.held(sum(again, this.joined(power, ways.again)));
            power = this.joined(power, one);
            if (times >= least) done = this.held(sum(done, power));
        }
        return {done, again};
    }

    // The counts of one part followed by another (a convolution).
    joined(first, second) {
        if (first === NOTHING || second === NOTHING) return first === NOTHING ? second : first;
        if (!first.length || !second.length) return [];
        const counts = Array(Math.min(RUN + 1, first.length + second.length - 1)).fill(0);
        for (let at = 0; at < first.length; at++) {
            if (!first[at]) continue;
            this.steps.take(second.length);
            for (let length = 0; length < second.length && at + length <= RUN; length++) {
                counts[at + length] += first[at] * second[length];
            }
        }
        while (counts.length && !counts[counts.length - 1]) counts.pop();
        return this.held(counts);
    }

    held(counts) {
        let most = 0;
        for (let at = 0; at < counts.length; at++) if (counts[at] > most) most = counts[at];
        if (most > this.most) atMost(`${this.kind}_run_ways`, most);
        return counts;
    }
}

function sum(first, second) {
    const [longer, shorter] = first.length >= second.length ? [first, second] : [second, first];
    return longer.map((ways, at) => ways + (shorter[at] || 0));
}

export {checkRuns};
