// A regular expression in a schema, which llama-server makes a grammar of: how large that would be.
import {atMost} from 'limits.js';

const TOKEN = /\\[^]|\[(?:[^\]\\]|\\[^])*\]|\(\?[:=!<]*|[()]|(\{(\d*)(,?)(\d*)\}|[*+?])\??|[^]/gy;

function checkPattern(text) {
    atMost('pattern_chars', text.length);
    // of each open group: the product of repetitions within and that of its last part; the same of its optional parts
    const groups = [{most: 1, last: 1, optional: 0, lastOptional: 0}];
    for (const [token, times, least, comma, most] of text.matchAll(TOKEN)) {
        const group = groups[groups.length - 1];
        if (token[0] === '(' ) {
            groups.push({most: 1, last: 1, optional: 0, lastOptional: 0});
            atMost('pattern_depth', groups.length - 1);
        } else if (token === ')') {
            if (groups.length > 1) {
                const inner = groups.pop(), outer = groups[groups.length - 1];
                add(outer, inner.most);
                addOptional(outer, 0, inner.optional);
            }
        } else if (times) {
            const counts = times[0] === '{' ? [Number(least), comma && most ? Number(most) : Number(least)] : [times[0] === '+' ? 1 : 0, 1];
            const copies = Math.max(1, ...counts); // each may leave out for itself what is optional in it
            addOptional(group, group.lastOptional, group.lastOptional * copies + (counts[0] === 0 ? 1 : 0));
            add(group, group.last * copies);
        } else {
            group.last = 1;
            group.lastOptional = 0;
        }
    }
}

function add(group, product) {
    atMost('pattern_repeats', product);
    group.last = product;
    group.most = Math.max(group.most, product);
}

function addOptional(group, before, optional) {
    group.optional += optional - before;
    group.lastOptional = optional;
    atMost('pattern_optional', group.optional);
}

export {checkPattern};
