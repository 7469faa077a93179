"""Text of users' in code that is written: as identifiers and in comments, so that a name never becomes code."""

import keyword
import re
import unicodedata

_FUNCTIONS = (
    "acosh?|asinh?|atan[2h]?|cbrt|ceil|copysign|cosh?|drem|erfc?|exp|exp10|exp2|expm1|fabs|fdim|finite|floor|fma|fmax|fmin"
    "|fmod|frexp|gamma|hypot|ilogb|[jy][01n]|ldexp|lgamma|l{0,2}rint|l{0,2}round|log|log10|log1p|log2|logb|modf|nan"
    "|nearbyint|nextafter|nexttoward|pow|pow10|remainder|remquo|rint|round|scalb|scalbl?n|significand|sincos|sinh?|sqrt"
    "|tanh?|tgamma|trunc|c(?:abs|acosh?|arg|asinh?|atanh?|cosh?|exp|imag|log|log10|pow|proj|real|sinh?|sqrt|tanh?)|conj"
)
C = re.compile(
    # of C from C99 on, and of C++
    "(?:alignas|alignof|and|and_eq|asm|auto|bitand|bitor|bool|break|case|catch|char|class|compl|complex|concept|const"
    "|const_cast|consteval|constexpr|constinit|continue|co_await|co_return|co_yield|decltype|default|delete|do|double"
    "|dynamic_cast|else|enum|explicit|export|extern|false|float|for|friend|goto|if|imaginary|inline|int|long|main|mutable"
    "|namespace|new|noexcept|noreturn|not|not_eq|nullptr|operator|or|or_eq|private|protected|public|register"
    "|reinterpret_cast|requires|restrict|return|short|signed|sizeof|static|static_assert|static_cast|std|struct|switch"
    "|template|this|thread_local|throw|true|try|typedef|typeid|typename|typeof|typeof_unqual|union|unsigned|using|virtual"
    "|void|volatile|while|xor|xor_eq"
    # macros and types of all headers, as they are spelled, and those that compilers define
    r"|[A-Z][A-Z0-9_]*|\w+_t|linux|unix|near|far|huge|errno|assert|offsetof|unreachable|fpclassify|signbit|math_errhandling"
    "|is(?:(?:finite|inf|nan)[fl]?|normal|subnormal|zero|greater|greaterequal|less|lessequal|lessgreater|unordered"
    "|signaling|eqsig|canonical)"
    # functions of <math.h>, <complex.h> and <string.h>, also those that compilers add
    rf"|(?:{_FUNCTIONS})[fl]?(?:_r)?|r?index|ffsl{{0,2}}|(?:explicit_)?bzero|bcmp|bcopy|signgam|stpn?cpy"
    "|mem(?:ccpy|chr|cmp|cpy|frob|mem|move|pcpy|rchr|set|set_explicit)|str(?:case)?(?:cat|chr|chrnul|cmp|coll|cpy|cspn|dup"
    "|error|fry|lcat|lcpy|len|ncasecmp|ncat|ncmp|ncpy|ndup|nlen|pbrk|rchr|sep|signal|spn|str|tok|verscmp|xfrm)(?:_[lr])?"
    # what the writer names itself: indices, constants, helpers
    r"|[a-z]\d+|etpc_\w+|state|work)(?<!_)"
)
"""Words that mean something in C or C++, in a header that is included, or in the code around them."""


def identifier(text: str, taken: set[str]) -> str:
    """A text as an identifier of C, which is none of its words and none of those taken; it is added to them."""
    name = re.sub(r"[\W_]+", "_", text, flags=re.ASCII).strip("_") or "value"
    name = name if name[0].isalpha() else f"p_{name}"
    while name in taken or C.fullmatch(name):
        name += "2" if name.endswith("_") else "_"  # two underscores would be reserved in C++
    taken.add(name)
    return name


def python_name(text: str, fallback: str) -> str:
    """A text as a name that Python takes, and reads as no other one: it normalises names."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c if f"a{c}".isidentifier() else "_" for c in text)
    text = re.sub("_+", "_", text).strip("_") or fallback
    is_name = text.isidentifier() and not keyword.iskeyword(text)
    return text if is_name else f"{fallback}_{text}"


def comment(text: str) -> str:
    """A text for a comment of C, in one line, which neither ends nor begins one: `/* ... */`."""
    text = ascii(text)[1:-1]  # no line ends, and no letters that change the order of reading
    return re.sub(r"(?<=\*)(?=/)|(?<=/)(?=[*/])|(?<=\?)(?=\?)", " ", text)
