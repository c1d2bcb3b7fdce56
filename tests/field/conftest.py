"""Cases from the field: what users of other libraries ran into, as tests of this one.

One file per public report, named after it: ``test_pytorch_125708.py`` for pytorch#125708. Its docstring gives the link,
says what happened there and what happens here. The test builds what the reporter had, in the words of our users
(``wd.configure_optimizers``, a Trainer, the command line), and fails if the handling breaks. It belongs here even if a
unit test holds the same for one part: this one holds it for the whole.
"""
