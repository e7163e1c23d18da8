// Checks a regular expression of a schema like a grammar, because llama-server converts it to one.
import {atMost} from 'limits.js';
import {checkRules} from 'grammar.js';

const TOKEN = /\\[^]|\[(?:[^\]\\]|\\[^])*\]|\(\?[:=!<]*|[()|]|(\{(\d*)(,?)(\d*)\}|[*+?])\??|[^]/g;
const CLASSES = {d: '0-9', w: 'A-Za-z0-9_', s: ' \\t\\n\\r'};

function checkPattern(text) {
    atMost('pattern_chars', text.length);
    let options = [[]];
    const open = [];
    const last = () => options[options.length - 1];
    for (const [token, times, least, comma, most] of text.matchAll(TOKEN)) {
        if (token[0] === '(') {
            open.push(options);
            atMost('pattern_depth', open.length);
            options = [[]];
        } else if (token === ')' && open.length) {
            const group = {kind: 'group', options, least: 1, most: 1};
            options = open.pop();
            last().push(group);
        } else if (token === '|') {
            options.push([]);
        } else if (times) {
            repeat(last(), times[0], [Number(least), comma ? Number(most) : Number(least)]);
        } else if (!'^$'.includes(token)) {
            last().push({kind: 'char', first: chars(token), least: 1, most: 1});
        }
    }
    while (open.length) {
        const inner = options;
        options = open.pop();
        last().push({kind: 'group', options: inner, least: 1, most: 1});
    }
    checkRules(new Map([['root', options]]), 'pattern');
}

function repeat(sequence, mark, counts) {
    if (!sequence.length) return;
    const part = sequence.pop();
    const [least, most] = {'*': [0, 0], '+': [1, 0], '?': [0, 1]}[mark] || counts;
    const inner = part.least === 1 && part.most === 1 ? part : {kind: 'group', options: [[part]]};
    sequence.push({...inner, least, most, isRepeated: true});
}

function chars(token) {
    if (token === '.') return '[^\\n]';
    if (token[0] === '[') return token.replace(/\\([dws])/g, (_, name) => CLASSES[name]);
    if (token[0] === '\\') return CLASSES[token[1]] ? `[${CLASSES[token[1]]}]` : /[DWS]/.test(token[1]) ? '.' : `"${token}"`;
    return `"${token}"`;
}

export {checkPattern};
