// Parses a grammar in GBNF as far as needed to estimate its cost for llama.cpp: a small grammar may have more ways to
// continue than any machine can follow.
import {Refused, atMost} from 'limits.js';
import {checkBeginnings} from 'beginnings.js';
import {checkLoops} from 'loops.js';
import {checkRuns} from 'runs.js';

const TOKEN = /\s+|#[^\n]*|([A-Za-z0-9_-]+)(\s*::=)?|("(?:[^"\\]|\\[^])*")|(\[(?:[^\]\\]|\\[^])*\])|(!?<[^>]*>)|([().|*+?])|(\{[\d,\s]*\})/y;

function checkGrammar(text) {
    if (typeof text !== 'string') throw new Refused('The grammar is not text.', 'Send it as a string in GBNF.');
    atMost('grammar_chars', text.length);
    const rules = parse(text);
    atMost('grammar_rules', rules.size);
    checkRules(rules, 'grammar');
}

// `kind` is 'grammar' or 'pattern' and selects the limits.
function checkRules(rules, kind) {
    const costs = new Costs(rules, kind);
    for (const name of rules.keys()) costs.ofRule(name);
    atMost(`${kind}_optional`, costs.optional);
    atMost(`${kind}_written`, costs.written);
    const firsts = checkBeginnings(rules, costs);
    checkLoops(rules, costs, firsts);
    checkRuns(rules, kind);
}

// ---- the rules: an option is a list of parts; a part is {kind: char, ref or group, least, most} ---------------

function parse(text) {
    const rules = new Map();
    let open = [], options = null;
    const last = () => options[options.length - 1];
    for (const token of tokens(text)) {
        if (token.rule !== undefined) {
            if (open.length) throw new Refused('A group of the grammar is not closed.', 'Close it.');
            options = [[]];
            rules.set(token.rule, options);
            continue;
        }
        if (!options) throw new Refused('The grammar does not begin with a rule.', 'Begin with: root ::= …');
        if (token.is === '(') {
            open.push(options);
            atMost('grammar_depth', open.length);
            options = [[]];
        } else if (token.is === ')') {
            if (!open.length) throw new Refused('A group of the grammar is closed but not opened.', 'Open it.');
            const group = {kind: 'group', options, least: 1, most: 1};
            options = open.pop();
            last().push(group);
        } else if (token.is === '|') {
            options.push([]);
        } else if (token.times) {
            repeat(last(), token.times);
        } else {
            last().push({...token, least: 1, most: 1});
        }
    }
    return rules;
}

function* tokens(text) {
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < text.length) {
        const start = TOKEN.lastIndex;
        const found = TOKEN.exec(text);
        if (!found) {
            throw new Refused(`The grammar is not GBNF at ${JSON.stringify(text.slice(start, start + 20))}.`, 'Correct it there.');
        }
        const [, name, defines, literal, chars, wanted, mark, times] = found;
        if (defines) yield {rule: name};
        else if (name) yield {kind: 'ref', name};
        else if (literal) yield {kind: 'char', first: literal.length > 2 ? literal : '', isEmpty: literal.length === 2};
        else if (chars || wanted) yield {kind: 'char', first: chars || wanted};
        else if (mark === '.') yield {kind: 'char', first: '[^]'};
        else if (mark && '*+?'.includes(mark)) yield {times: {'*': [0, 0], '+': [1, 0], '?': [0, 1]}[mark]};
        else if (mark) yield {is: mark};
        else if (times) yield {times: bounds(times)};
    }
}

// [least, most]; most is 0 if unbounded.
function bounds(text) {
    const [least, most] = text.slice(1, -1).split(',').map((part) => part.trim());
    return [Number(least), most === undefined ? Number(least) : Number(most)];
}

function repeat(sequence, [least, most]) {
    if (!sequence.length) throw new Refused('A repetition of the grammar repeats nothing.', 'Put something before it.');
    const part = sequence.pop();
    // a part that is repeated already, as in a*{3}, becomes a group
    const inner = part.least === 1 && part.most === 1 ? part : {kind: 'group', options: [[part]]};
    sequence.push({...inner, least, most, isRepeated: true});
}

// ---- their cost ----------------------------------------------------------------------------------------------

// For each rule: whether it may match nothing; `choices`, the literals that may come first; `run`, its optional parts in
// a row; `repeats`, the product of its nested repetitions.
class Costs {
    constructor(rules, kind) {
        this.rules = rules;
        this.kind = kind;
        this.known = new Map();
        this.optional = 0;
        this.written = 0; // repetitions written out
    }

    ofRule(name) {
        if (this.known.has(name)) {
            const found = this.known.get(name);
            // a recursive reference to a rule whose cost is still being computed
            if (!found) return {isEmpty: false, choices: 0, run: 0, repeats: 1, isOpen: true};
            return found;
        }
        if (!this.rules.has(name)) throw new Refused(`The grammar has no rule ${name.slice(0, 60)}.`, 'Write it.');
        this.known.set(name, null);
        const found = this.ofOptions(this.rules.get(name));
        this.known.set(name, found);
        return found;
    }

    ofOptions(options) {
        const sum = {isEmpty: false, choices: 0, run: 0, loops: 0, repeats: 1};
        for (const sequence of options) {
            const cost = this.ofSequence(sequence);
            sum.choices += cost.choices;
            sum.isEmpty = sum.isEmpty || cost.isEmpty;
            sum.run = Math.max(sum.run, cost.run);
            sum.loops = Math.max(sum.loops, cost.loops);
            sum.repeats = Math.max(sum.repeats, cost.repeats);
        }
        atMost(`${this.kind}_choices`, sum.choices);
        return sum;
    }

    // From the last part to the first: what may come at each place.
    ofSequence(sequence) {
        let choices = 0, run = 0, loops = 0, isEmpty = true, longest = 0, most = 0, repeats = 1;
        for (let at = sequence.length - 1; at >= 0; at--) {
            const part = sequence[at], cost = this.ofPart(part);
            choices = cost.choices + (cost.isEmpty ? choices : 0);
            run = cost.isEmpty ? Math.max(1, cost.run) + run : 0;
            loops = cost.isEmpty ? loops + (part.most === 1 ? cost.loops || 0 : 1) : 0;
            most = Math.max(most, loops);
            isEmpty = isEmpty && cost.isEmpty;
            longest = Math.max(longest, run);
            repeats = Math.max(repeats, cost.repeats);
            atMost(`${this.kind}_choices`, choices);
            atMost(`${this.kind}_optional_run`, run);
            atMost(`${this.kind}_loops`, loops);
            atMost(`${this.kind}_repeats`, repeats);
        }
        return {choices, run: isEmpty ? run : 0, loops: isEmpty ? loops : 0, isEmpty, repeats};
    }

    ofPart(part) {
        if (part.cost) return part.cost;
        const inner = part.kind === 'ref' ? this.ofRule(part.name)
            : part.kind === 'group' ? this.ofOptions(part.options)
            : {isEmpty: Boolean(part.isEmpty), choices: 1 + Math.floor((part.first || '').length / 32), run: 0, repeats: 1};
        if (part.isRepeated) this.written += Math.max(part.least, part.most);
        if (part.least === 0) this.optional++;
        const times = Math.max(part.least, part.most, 1);
        const isEmpty = inner.isEmpty || part.least === 0;
        const copies = inner.isEmpty ? times : 1; // each copy of a part that may match nothing is optional itself
        const run = isEmpty ? Math.max(1, inner.run) * copies : 0;
        const cost = {...inner, isEmpty, run, choices: inner.choices * copies, repeats: inner.repeats * times};
        if (!inner.isOpen) part.cost = cost;
        return cost;
    }
}

export {checkGrammar, checkRules};
